// bf16 in AVX2, which has no instructions for it. Included after the pragma that allows AVX2.
#pragma once

#include <immintrin.h>

#include "kernels.h"

namespace lorry {
namespace {

inline void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }

inline __m256i load(const bf16* p) { return _mm256_loadu_si256((const __m256i*)p); }

// bf16 is the upper half of fp32: of 16 values, the eight with an even index, and those between.
inline __m256 even(__m256i values) { return _mm256_castsi256_ps(_mm256_slli_epi32(values, 16)); }

inline __m256 odd(__m256i values) {
  return _mm256_castsi256_ps(_mm256_and_si256(values, _mm256_set1_epi32((int)0xffff0000)));
}

// To nearest, ties to even; in the lower half of each lane. A NaN stays one, whatever it carries.
inline __m256i round_to_bf16(__m256 values) {
  const __m256i bits = _mm256_castps_si256(values);
  const __m256i is_odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i half = _mm256_add_epi32(is_odd, _mm256_set1_epi32(0x7fff));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), is_nan);
}

}  // namespace
}  // namespace lorry

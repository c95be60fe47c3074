// How the AVX-512 and AMX kernels read packed NF4. Included after they name their instructions.
#pragma once

#include <immintrin.h>

#include "nf4.h"

namespace lorry {
namespace {

// One vector of 64 bytes holds 8 weights of 16 columns: word 2c+i holds, from its lowest bits,
// those of column c at k = i, 2+i, 4+i, 6+i: pairs as vdpbf16ps and tdpbf16ps take them.
constexpr int kWeightsPerVector = 8;
constexpr int kVectors = kBlock / kWeightsPerVector;

// Twice the 16 codes: vpermw looks at five bits, of which the fifth belongs to the next code.
inline __m512i code_book() {
  alignas(64) bf16 table[32];
  for (int i = 0; i < 32; ++i) table[i] = code_in_bf16(i % 16);
  return _mm512_load_si512(table);
}

// The `t`-th pair of each column, in bf16 and not yet scaled.
inline __m512i look_up(__m512i codes, int t, __m512i book) {
  return _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4 * t), book);
}

}  // namespace
}  // namespace lorry

// What the AVX-512 and AMX kernels share of LoRA: B's columns in pairs of ranks, and how a delta is
// bounded and added. Included after <algorithm>, and then after they name their instructions.
#pragma once

#include <immintrin.h>

#include <algorithm>

#include "kernels.h"

namespace lorry {
namespace {

constexpr int kAhead = 64;    // columns of B to fetch ahead
constexpr int kColumns = 16;  // fp32 sums in a vector
constexpr int kStep = 2 * kColumns;  // columns of y in a line of the cache

// Two neighbouring values of 16 rows of memory. A struct, as templates lose a vector type's
// alignment.
struct alignas(64) Pairs {
  __m512i values;
};

inline void prefetch(const bf16* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }

inline __mmask16 mask_of(int64_t columns) {
  return (__mmask16)(columns >= kColumns ? 0xffff : columns <= 0 ? 0 : (1u << columns) - 1);
}

// The starts of 16 rows of memory; rows at or beyond `last` repeat the one before it, and their
// results are never written.
struct Sources {
  const bf16* from[kColumns];
  Sources(const bf16* rows, int64_t ld, int64_t first, int64_t last) {
    for (int c = 0; c < kColumns; ++c) from[c] = rows + std::min(first + c, last - 1) * ld;
  }
};

// The first `depth` values of 16 rows, a multiple of 8, as pairs: pairs[p] holds values 2p and 2p+1
// of every row.
inline void transpose(const Sources& rows, int depth, Pairs* pairs) {
  for (int p = 0; p < depth; p += kRankStep, pairs += 4) {
    const auto eight = [&](int c) { return _mm_loadu_si128((const __m128i*)(rows.from[c] + p)); };
    __m512i z[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      __m512i v = _mm512_castsi128_si512(eight(i));
      v = _mm512_inserti32x4(v, eight(i + 4), 1);
      v = _mm512_inserti32x4(v, eight(i + 8), 2);
      z[i] = _mm512_inserti32x4(v, eight(i + 12), 3);
    }
    const __m512i low01 = _mm512_unpacklo_epi32(z[0], z[1]);
    const __m512i low23 = _mm512_unpacklo_epi32(z[2], z[3]);
    const __m512i high01 = _mm512_unpackhi_epi32(z[0], z[1]);
    const __m512i high23 = _mm512_unpackhi_epi32(z[2], z[3]);
    pairs[0].values = _mm512_unpacklo_epi64(low01, low23);
    pairs[1].values = _mm512_unpackhi_epi64(low01, low23);
    pairs[2].values = _mm512_unpacklo_epi64(high01, high23);
    pairs[3].values = _mm512_unpackhi_epi64(high01, high23);
  }
}

// 16 columns of B, each with its ranks in pairs.
inline void transpose_columns(const Expand& job, int64_t column, int64_t last, Pairs* pairs) {
  const Sources columns(job.b, job.ldb, column, last);
  for (const bf16* each : columns.from) prefetch(each + kAhead * job.ldb);
  transpose(columns, job.rank, pairs);
}

// vLLM reads freed blocks of the KV cache as zero times what is left there, so one non-finite
// value that an adapter put into its own rows would reach whoever gets the block next.
inline __m512 bounded(__m512 delta, float bound, __mmask16 columns, int64_t& repaired) {
  const __m512 limit = _mm512_set1_ps(bound);
  const __mmask16 fine = _mm512_cmp_ps_mask(_mm512_abs_ps(delta), limit, _CMP_LE_OQ);
  if (__builtin_expect((fine & columns) == columns, 1)) return delta;
  repaired += __builtin_popcount(columns & ~fine);
  const __mmask16 number = _mm512_cmp_ps_mask(delta, delta, _CMP_ORD_Q);
  delta = _mm512_maskz_mov_ps(number, delta);
  return _mm512_max_ps(_mm512_min_ps(delta, limit), _mm512_sub_ps(_mm512_setzero_ps(), limit));
}

inline void write(bf16* y, __m512 delta, __mmask16 columns, bool add) {
  if (add) {
    const __m256i old = _mm256_maskz_loadu_epi16(columns, y);
    delta = _mm512_add_ps(
        delta, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(old), 16)));
  }
  _mm256_mask_storeu_epi16(y, columns, (__m256i)_mm512_cvtneps_pbh(delta));
}

inline __m512 load_fp32(const bf16* y) {
  const __m256i values = _mm256_loadu_si256((const __m256i*)y);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
}

// A step's sums into a row of y at `column`; returns how many had to be repaired.
inline int64_t add_to_row(const Expand& job, __m512 left, __m512 right, int row, int64_t column) {
  constexpr __mmask16 kAll = 0xffff;
  bf16* y = job.y + job.rows[row] * job.ldy + column;
  const __m512i bound = _mm512_castps_si512(_mm512_set1_ps(job.bound));
  // As integers without their sign, NaN and infinity are larger than any bound.
  const __m512i largest = _mm512_max_epu32(_mm512_castps_si512(_mm512_abs_ps(left)),
                                           _mm512_castps_si512(_mm512_abs_ps(right)));
  if (__builtin_expect(job.add && !_mm512_cmpgt_epu32_mask(largest, bound), 1)) {
    _mm512_storeu_si512(y, (__m512i)_mm512_cvtne2ps_pbh(
                               _mm512_add_ps(right, load_fp32(y + kColumns)),
                               _mm512_add_ps(left, load_fp32(y))));
    return 0;
  }
  int64_t repaired = 0;
  write(y, bounded(left, job.bound, kAll, repaired), kAll, job.add);
  write(y + kColumns, bounded(right, job.bound, kAll, repaired), kAll, job.add);
  return repaired;
}

}  // namespace
}  // namespace lorry

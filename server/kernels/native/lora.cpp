// One adapter's rows: x -> A x (shrink) -> y + B (A x) (expand), straight from vLLM's slots.
// For AVX-512 with BF16.
#include "kernels.h"

#include <algorithm>
#include <vector>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#include "lora_avx512.h"

namespace lorry {
namespace {

constexpr int kShrinkRows = 6;    // 6 rows x 4 ranks: 24 sums in registers
constexpr int kShrinkRanks = 4;
constexpr int kExpandRows = 4;    // 4 rows x 4 vectors of columns: more rows fall on one another in
                                  // the cache, as rows lie a power of two apart
constexpr int kVectors = 4;
constexpr int kTile = kVectors * kColumns;

inline __m512bh load(const bf16* p) { return (__m512bh)_mm512_loadu_si512(p); }

inline __m512bh load_tail(const bf16* p, __mmask32 mask) {
  return (__m512bh)_mm512_maskz_loadu_epi16(mask, p);
}

inline bf16 round_to_bf16(float value) {
  return (bf16)_mm_extract_epi16((__m128i)_mm_cvtneps_pbh(_mm_set_ss(value)), 0);
}

template <int R>
void shrink_tile(const bf16* const* x, const bf16* a, int64_t width, float scale, bf16* shrunk,
                 int64_t lds) {
  __m512 sums[R][kShrinkRanks];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < kShrinkRanks; ++j) sums[r][j] = _mm512_setzero_ps();

  const auto step = [&](auto get, int64_t k) {
    __m512bh weights[kShrinkRanks];
#pragma GCC unroll 8
    for (int j = 0; j < kShrinkRanks; ++j) {
      weights[j] = get(a + j * width + k);
      prefetch(a + (j + kShrinkRanks) * width + k);  // the next tile's; in decode all A is cold
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512bh values = get(x[r] + k);
#pragma GCC unroll 8
      for (int j = 0; j < kShrinkRanks; ++j)
        sums[r][j] = _mm512_dpbf16_ps(sums[r][j], weights[j], values);
    }
  };
  int64_t k = 0;
  for (; k + 32 <= width; k += 32) step(load, k);
  if (k < width) {
    const __mmask32 mask = (1u << (width - k)) - 1;
    step([mask](const bf16* p) { return load_tail(p, mask); }, k);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < kShrinkRanks; ++j)
      shrunk[r * lds + j] = round_to_bf16(_mm512_reduce_add_ps(sums[r][j]) * scale);
}

// Whether no value of a tile has to be repaired: as integers without their sign, NaN and infinity
// are larger than any bound.
template <int R>
inline bool is_bounded(const __m512 (&sums)[R][kVectors], float bound) {
  __m512i largest = _mm512_setzero_si512();
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      largest = _mm512_max_epu32(largest, _mm512_castps_si512(_mm512_abs_ps(sums[r][v])));
  return !_mm512_cmpgt_epu32_mask(largest, _mm512_castps_si512(_mm512_set1_ps(bound)));
}

// y[R rows, kTile columns], of which those before `width` exist.
template <int R>
int64_t expand_tile(const Expand& job, int row, const Pairs* pairs, int64_t column,
                    int64_t width) {
  __m512 sums[R][kVectors];
  const bf16* shrunk = job.shrunk + row * job.lds;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm512_setzero_ps();
  const int steps = job.rank / 2;
  for (int p = 0; p < steps; ++p) {
    __m512bh weights[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) weights[v] = (__m512bh)pairs[p + v * steps].values;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      int32_t pair;
      __builtin_memcpy(&pair, shrunk + r * job.lds + 2 * p, sizeof pair);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        sums[r][v] = _mm512_dpbf16_ps(sums[r][v], weights[v], (__m512bh)_mm512_set1_epi32(pair));
    }
  }
  const auto y_of = [&](int r) { return job.y + job.rows[row + r] * job.ldy + column; };
  // Masks and repairs cost as much as the product: most tiles need neither.
  if (__builtin_expect(job.add && width >= kTile && is_bounded(sums, job.bound), 1)) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      bf16* y = y_of(r);
      if (row + R + r < job.count) {
        prefetch(y_of(R + r));
        prefetch(y_of(R + r) + 2 * kColumns);
      }
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; v += 2, y += 2 * kColumns) {
        const __m512 left = _mm512_add_ps(sums[r][v], load_fp32(y));
        const __m512 right = _mm512_add_ps(sums[r][v + 1], load_fp32(y + kColumns));
        _mm512_storeu_si512(y, (__m512i)_mm512_cvtne2ps_pbh(right, left));
      }
    }
    return 0;
  }
  int64_t repaired = 0;
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < kVectors; ++v) {
      const __mmask16 columns = mask_of(width - v * kColumns);
      write(y_of(r) + v * kColumns, bounded(sums[r][v], job.bound, columns, repaired), columns,
            job.add);
    }
  return repaired;
}

constexpr decltype(&expand_tile<1>) kExpandTiles[kExpandRows] = {
    expand_tile<1>, expand_tile<2>, expand_tile<3>, expand_tile<4>};
constexpr decltype(&shrink_tile<1>) kShrinkTiles[kShrinkRows] = {
    shrink_tile<1>, shrink_tile<2>, shrink_tile<3>, shrink_tile<4>, shrink_tile<5>, shrink_tile<6>};

void shrink(const bf16* x, int64_t ldx, const int32_t* rows, int count, const bf16* a,
            int64_t width, int rank, float scale, bf16* shrunk, int64_t lds) {
  for (int i = 0; i < count; i += kShrinkRows) {
    const int height = std::min(count - i, kShrinkRows);
    const bf16* from[kShrinkRows];
    for (int r = 0; r < height; ++r) from[r] = x + rows[i + r] * ldx;
    for (int j = 0; j < rank; j += kShrinkRanks)
      kShrinkTiles[height - 1](from, a + j * width, width, scale, shrunk + i * lds + j, lds);
  }
}

int64_t expand(const Expand& job, int64_t first, int64_t last) {
  // Transposed once for all rows; then row by row, as rows lie far apart in memory.
  const int64_t tiles = (last - first + kTile - 1) / kTile;
  const int pairs_per_tile = kVectors * job.rank / 2;
  thread_local std::vector<Pairs> pairs;
  if ((int64_t)pairs.size() < tiles * pairs_per_tile) pairs.resize(tiles * pairs_per_tile);
  for (int64_t t = 0; t < tiles; ++t)
    for (int v = 0; v < kVectors; ++v)
      transpose_columns(job, first + t * kTile + v * kColumns, last,
                        pairs.data() + t * pairs_per_tile + v * job.rank / 2);

  int64_t repaired = 0;
  for (int row = 0; row < job.count; row += kExpandRows) {
    const auto tile = kExpandTiles[std::min(job.count - row, kExpandRows) - 1];
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t column = first + t * kTile;
      repaired += tile(job, row, pairs.data() + t * pairs_per_tile, column, last - column);
    }
  }
  return repaired;
}

}  // namespace

const LoraKernels kLoraAvx512{shrink, expand};

}  // namespace lorry

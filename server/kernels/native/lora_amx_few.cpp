// LoRA by tiles (AMX) for segments of few rows, as a step of generating has them: mostly reading A
// and B, so these are the first operand as they lie in memory. Only the few rows are put in pairs.
// A tile of sums has ranks, or columns of y, as its rows and is transposed.
#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels.h"

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")
#include "amx.h"
#include "lora_avx512.h"

namespace lorry {
namespace {

constexpr int kGroup = 4;  // rows whose sums share a tile
constexpr int kGroupBytes = kGroup * sizeof(float);
constexpr int kStepsAhead = 2;  // a tile reads what has reached the cache, and so does a vector

// Of up to 32 values, for the second operand.
struct alignas(64) PairedRows {
  int32_t pairs[kTileRows][kGroup];
};

struct alignas(64) GroupSums {
  float values[kTileRows][kGroup];
};

struct Rows {
  __m512 sums[kGroup];
};

// From 16 x 4 to 4 x 16.
inline Rows transpose(const GroupSums& sums) {
  // Of two vectors of 4 x 4 each: 8 values of an even row, then of the next one.
  const __m512i even = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(2));
  const auto rows = [&](int first, __m512i which) {
    return _mm512_permutex2var_ps(_mm512_load_ps(sums.values[first]), which,
                                  _mm512_load_ps(sums.values[first + kGroup]));
  };
  const __m512 left01 = rows(0, even), left23 = rows(0, odd);
  const __m512 right01 = rows(8, even), right23 = rows(8, odd);
  return {{_mm512_shuffle_f32x4(left01, right01, 0x44), _mm512_shuffle_f32x4(left01, right01, 0xee),
           _mm512_shuffle_f32x4(left23, right23, 0x44), _mm512_shuffle_f32x4(left23, right23, 0xee)}};
}

// From 4 rows of 16 pairs to 16 x 4 pairs.
inline void pair_rows(const bf16* const (&rows)[kGroup], int64_t k, PairedRows& paired) {
  const auto row = [&](int r) { return _mm512_loadu_si512(rows[r] + k); };
  const __m512i low01 = _mm512_unpacklo_epi32(row(0), row(1));
  const __m512i low23 = _mm512_unpacklo_epi32(row(2), row(3));
  const __m512i high01 = _mm512_unpackhi_epi32(row(0), row(1));
  const __m512i high23 = _mm512_unpackhi_epi32(row(2), row(3));
  // Each holds pairs i, 4 + i, 8 + i and 12 + i of all four rows.
  const __m512i pairs0 = _mm512_unpacklo_epi64(low01, low23);
  const __m512i pairs1 = _mm512_unpackhi_epi64(low01, low23);
  const __m512i pairs2 = _mm512_unpacklo_epi64(high01, high23);
  const __m512i pairs3 = _mm512_unpackhi_epi64(high01, high23);
  const __m512i even01 = _mm512_shuffle_i32x4(pairs0, pairs1, 0x88);
  const __m512i even23 = _mm512_shuffle_i32x4(pairs2, pairs3, 0x88);
  const __m512i odd01 = _mm512_shuffle_i32x4(pairs0, pairs1, 0xdd);
  const __m512i odd23 = _mm512_shuffle_i32x4(pairs2, pairs3, 0xdd);
  _mm512_store_si512(paired.pairs[0], _mm512_shuffle_i32x4(even01, even23, 0x88));
  _mm512_store_si512(paired.pairs[4], _mm512_shuffle_i32x4(odd01, odd23, 0x88));
  _mm512_store_si512(paired.pairs[8], _mm512_shuffle_i32x4(even01, even23, 0xdd));
  _mm512_store_si512(paired.pairs[12], _mm512_shuffle_i32x4(odd01, odd23, 0xdd));
}

// ---- x -> A x -------------------------------------------------------------------------------

// Tiles: sums 0, A 1, rows 2. Up to 16 ranks.
void shrink_group(const bf16* const (&x)[kGroup], const bf16* a, int64_t width, int ranks,
                  GroupSums& sums) {
  constexpr int kKept = 2 * kStepsAhead;
  constexpr int64_t kFetched = 4 * kDepth;
  PairedRows rows[kKept];
  const auto prepare = [&](int64_t k) {
    if (k < width) pair_rows(x, k, rows[k / kDepth % kKept]);
  };
  for (int i = 0; i < kStepsAhead; ++i) prepare(i * kDepth);
  _tile_zero(0);
  for (int64_t k = 0; k < width; k += kDepth) {
    prepare(k + kStepsAhead * kDepth);
    for (int r = 0; r < ranks; ++r) prefetch(a + r * width + k + kFetched);
    before_tiles_read();
    _tile_loadd(1, a + k, width * sizeof(bf16));
    _tile_loadd(2, rows[k / kDepth % kKept].pairs, kGroupBytes);
    _tile_dpbf16ps(0, 1, 2);
  }
  _tile_stored(0, sums.values, kGroupBytes);
}

void shrink(const bf16* x, int64_t ldx, const int32_t* rows, int count, const bf16* a,
            int64_t width, int rank, float scale, bf16* shrunk, int64_t lds) {
  const __m512 scales = _mm512_set1_ps(scale);
  GroupSums sums{};
  for (int j = 0; j < rank; j += kTileRows) {
    const int ranks = std::min(rank - j, kTileRows);
    const Tiles configured{
        {0, 1, ranks, kGroupBytes}, {1, 1, ranks}, {2, 1, kTileRows, kGroupBytes}};
    for (int first = 0; first < count; first += kGroup) {
      const bf16* group[kGroup];  // the last row stands in for those that are missing
      for (int r = 0; r < kGroup; ++r) group[r] = x + rows[std::min(first + r, count - 1)] * ldx;
      shrink_group(group, a + j * width, width, ranks, sums);
      const Rows results = transpose(sums);
      for (int r = 0; r < std::min(count - first, kGroup); ++r)
        _mm256_mask_storeu_epi16(
            shrunk + (first + r) * lds + j, mask_of(ranks),
            (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(results.sums[r], scales)));
    }
  }
}

// ---- y + B (A x) ----------------------------------------------------------------------------

// Tiles: sums 0 and 1, B 2 and 3, rows 4.
void multiply(const Expand& job, int64_t column, const PairedRows* rows, GroupSums* sums) {
  const bf16* b = job.b + column * job.ldb;
  const int64_t stride = job.ldb * sizeof(bf16), columns = std::max<int64_t>(1, 64 / stride);
  for (int64_t c = 0; c < kStep; c += columns) prefetch(b + (kAhead + c) * job.ldb);
  _tile_zero(0);
  _tile_zero(1);
  for (int p = 0; p < job.rank; p += kDepth, ++rows) {
    _tile_loadd(4, rows->pairs, kGroupBytes);
    _tile_loadd(2, b + p, stride);
    _tile_dpbf16ps(0, 2, 4);
    _tile_loadd(3, b + kColumns * job.ldb + p, stride);
    _tile_dpbf16ps(1, 3, 4);
  }
  _tile_stored(0, sums[0].values, kGroupBytes);
  _tile_stored(1, sums[1].values, kGroupBytes);
}

std::vector<PairedRows> pair_shrunk(const Expand& job, int first, int count) {
  std::vector<PairedRows> paired((job.rank + kDepth - 1) / kDepth);
  for (int r = 0; r < count; ++r)
    for (int p = 0; p < job.rank / 2; ++p)
      std::memcpy(&paired[p / kTileRows].pairs[p % kTileRows][r],
                  job.shrunk + (first + r) * job.lds + 2 * p, sizeof(int32_t));
  before_tiles_read();
  return paired;
}

// 4 rows at most.
int64_t expand_group(const Expand& job, int first, int64_t column, int64_t steps) {
  const int count = std::min(job.count - first, kGroup);
  const std::vector<PairedRows> rows = pair_shrunk(job, first, count);
  GroupSums sums[kStepsAhead][2];
  int64_t repaired = 0;
  for (int64_t s = 0; s < steps + kStepsAhead; ++s) {
    GroupSums* now = sums[s % kStepsAhead];
    if (s >= kStepsAhead) {
      const Rows left = transpose(now[0]), right = transpose(now[1]);
      for (int r = 0; r < count; ++r)
        repaired += add_to_row(job, left.sums[r], right.sums[r], first + r,
                               column + (s - kStepsAhead) * kStep);
    }
    if (s < steps) multiply(job, column + s * kStep, rows.data(), now);
  }
  return repaired;
}

// Of whole steps, and of ranks that fill tiles.
int64_t expand(const Expand& job, int64_t first, int64_t last) {
  const int depth = std::min(job.rank, kDepth);
  const Tiles configured{
      {0, 2, kTileRows, kGroupBytes}, {2, 2, kTileRows, 2 * depth}, {4, 1, depth / 2, kGroupBytes}};
  int64_t repaired = 0;
  for (int row = 0; row < job.count; row += kGroup)
    repaired += expand_group(job, row, first, (last - first) / kStep);
  return repaired;
}

}  // namespace

const LoraKernels kLoraAmxFew{shrink, expand};

}  // namespace lorry

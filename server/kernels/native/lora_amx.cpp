// LoRA by tiles (AMX). A and B are transposed in pairs as they are used; with many rows what is left
// is mostly reading x and changing y.
// A row's result has the same bits here and in lora_amx_few.cpp.
#include <algorithm>
#include <vector>

#include "kernels.h"

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")
#include "amx.h"
#include "lora_avx512.h"

namespace lorry {
namespace {

constexpr int kFewRows = 8;      // fewer go to lora_amx_few.cpp
constexpr int kShrinkTiles = 6;  // of 16 rows, each with its sums in a tile

// ---- x -> A x -------------------------------------------------------------------------------

// Where a tile of rows begins and how many bytes lie between two of them.
struct TileOfRows {
  const bf16* start;
  int64_t stride;
};

// Rows that do not follow one another are copied until they do.
std::vector<TileOfRows> tiles_of(const bf16* x, int64_t ldx, const int32_t* rows,
                                 const Split& split, int64_t width) {
  thread_local std::vector<bf16> copies;
  const size_t needed = split.tiles * split.height * width;
  std::vector<TileOfRows> tiles;
  for (int t = 0; t < split.tiles; ++t) {
    const int32_t* own = rows + split.first(t);
    if (own[split.height - 1] - own[0] == split.height - 1) {
      tiles.push_back({x + own[0] * ldx, ldx * (int64_t)sizeof(bf16)});
      continue;
    }
    if (copies.size() < needed) copies.resize(needed);  // at most once: tiles point into it
    bf16* copy = copies.data() + t * split.height * width;
    for (int r = 0; r < split.height; ++r)
      std::copy_n(x + own[r] * ldx, width, copy + r * width);
    tiles.push_back({copy, width * (int64_t)sizeof(bf16)});
  }
  return tiles;
}

// Tiles: sums 0 to 5, rows 6, A 7.
template <int Count>
void shrink_tiles(const TileOfRows* x, const bf16* a, int64_t width, int ranks, Sums* sums) {
  constexpr int kTilesAhead = 2, kKept = 4;  // a tile reads what has reached the cache
  Pairs pairs[kKept][kTileRows];
  const auto prepare = [&](int64_t k) {
    if (k < width) transpose(Sources(a + k, width, 0, ranks), kDepth, pairs[k / kDepth % kKept]);
  };
  for (int i = 0; i < kTilesAhead; ++i) prepare(i * kDepth);
  _tile_zero(0);
  if constexpr (Count > 1) _tile_zero(1);
  if constexpr (Count > 2) _tile_zero(2);
  if constexpr (Count > 3) _tile_zero(3);
  if constexpr (Count > 4) _tile_zero(4);
  if constexpr (Count > 5) _tile_zero(5);
  for (int64_t k = 0; k < width; k += kDepth) {
    prepare(k + kTilesAhead * kDepth);
    before_tiles_read();
    _tile_loadd(7, pairs[k / kDepth % kKept], kTileBytes);
#define LORRY_ADD(t)                             \
  if constexpr (Count > t) {                     \
    _tile_loadd(6, x[t].start + k, x[t].stride); \
    _tile_dpbf16ps(t, 6, 7);                     \
  }
    LORRY_ADD(0) LORRY_ADD(1) LORRY_ADD(2) LORRY_ADD(3) LORRY_ADD(4) LORRY_ADD(5)
#undef LORRY_ADD
  }
  _tile_stored(0, sums[0].values, kTileBytes);
  if constexpr (Count > 1) _tile_stored(1, sums[1].values, kTileBytes);
  if constexpr (Count > 2) _tile_stored(2, sums[2].values, kTileBytes);
  if constexpr (Count > 3) _tile_stored(3, sums[3].values, kTileBytes);
  if constexpr (Count > 4) _tile_stored(4, sums[4].values, kTileBytes);
  if constexpr (Count > 5) _tile_stored(5, sums[5].values, kTileBytes);
}

constexpr decltype(&shrink_tiles<1>) kByTiles[kShrinkTiles] = {
    shrink_tiles<1>, shrink_tiles<2>, shrink_tiles<3>,
    shrink_tiles<4>, shrink_tiles<5>, shrink_tiles<6>};

// 16 ranks at most.
void shrink_rows(const bf16* x, int64_t ldx, const int32_t* rows, int count, const bf16* a,
                 int64_t width, int ranks, float scale, bf16* shrunk, int64_t lds) {
  const Split split(count);
  const std::vector<TileOfRows> tiles = tiles_of(x, ldx, rows, split, width);
  Sums sums[kShrinkTiles];
  {
    const Tiles configured{{0, 7, split.height}, {7, 1, kTileRows}};
    kByTiles[split.tiles - 1](tiles.data(), a, width, ranks, sums);
  }
  const __m512 scales = _mm512_set1_ps(scale);
  for (int t = 0; t < split.tiles; ++t)
    for (int r = 0; r < split.height; ++r)
      _mm256_mask_storeu_epi16(
          shrunk + (split.first(t) + r) * lds, mask_of(ranks),
          (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(_mm512_load_ps(sums[t].values[r]), scales)));
}

void shrink(const bf16* x, int64_t ldx, const int32_t* rows, int count, const bf16* a,
            int64_t width, int rank, float scale, bf16* shrunk, int64_t lds) {
  if (width % kDepth)
    return kLoraAvx512.shrink(x, ldx, rows, count, a, width, rank, scale, shrunk, lds);
  if (count < kFewRows)
    return kLoraAmxFew.shrink(x, ldx, rows, count, a, width, rank, scale, shrunk, lds);
  constexpr int kMostRows = kShrinkTiles * kTileRows;
  for (int i = 0; i < count; i += kMostRows)
    for (int j = 0; j < rank; j += kColumns)
      shrink_rows(x, ldx, rows + i, std::min(count - i, kMostRows), a + j * width, width,
                  std::min(rank - j, kColumns), scale, shrunk + i * lds + j, lds);
}

// ---- y + B (A x) ----------------------------------------------------------------------------

// Tiles: sums 0 and 1, rows 2, B 3 and 4. `pairs` holds `rank` / 2 for each of two columns of tiles.
void multiply(const bf16* shrunk, int64_t lds, const Pairs* pairs, int rank, Sums* sums) {
  _tile_zero(0);
  _tile_zero(1);
  for (int p = 0; p < rank; p += kDepth) {
    _tile_loadd(2, shrunk + p, lds * sizeof(bf16));
    _tile_loadd(3, pairs + p / 2, kTileBytes);
    _tile_dpbf16ps(0, 2, 3);
    _tile_loadd(4, pairs + (rank + p) / 2, kTileBytes);
    _tile_dpbf16ps(1, 2, 4);
  }
  _tile_stored(0, sums[0].values, kTileBytes);
  _tile_stored(1, sums[1].values, kTileBytes);
}

int64_t expand(const Expand& job, int64_t first, int64_t last) {
  const bool has_tiles = job.rank > 0 && (job.rank <= kDepth || job.rank % kDepth == 0);
  if (!has_tiles) return kLoraAvx512.expand(job, first, last);
  // A partial step goes the other way for every number of rows, else results would differ in bits.
  const int64_t end = last - (last - first) % kStep;
  if (end < last)
    return (first < end ? expand(job, first, end) : 0) + kLoraAvx512.expand(job, end, last);
  if (job.count < kFewRows) return kLoraAmxFew.expand(job, first, last);
  const int64_t steps = (last - first) / kStep;
  thread_local std::vector<Pairs> pairs;
  if ((int64_t)pairs.size() < steps * job.rank) pairs.resize(steps * job.rank);
  for (int64_t s = 0; s < 2 * steps; ++s)
    transpose_columns(job, first + s * kColumns, last, pairs.data() + s * job.rank / 2);
  before_tiles_read();

  const Split split(job.count);
  const int depth = std::min(job.rank, kDepth);
  const Tiles configured{
      {0, 2, split.height}, {2, 1, split.height, 2 * depth}, {3, 2, depth / 2}};
  Sums sums[2][2];
  int64_t repaired = 0;
  for (int t = 0; t < split.tiles; ++t) {
    const int row = split.first(t);
    // A step's sums are added a step later, when they have reached the cache.
    for (int64_t s = 0; s <= steps; ++s) {
      if (s < steps)
        multiply(job.shrunk + row * job.lds, job.lds, pairs.data() + s * job.rank, job.rank,
                 sums[s % 2]);
      if (s == 0) continue;
      const Sums* done = sums[(s - 1) % 2];
      for (int r = split.repeated(t); r < split.height; ++r)
        repaired += add_to_row(job, _mm512_load_ps(done[0].values[r]),
                               _mm512_load_ps(done[1].values[r]), row + r,
                               first + (s - 1) * kStep);
    }
  }
  return repaired;
}

}  // namespace

const LoraKernels kLoraAmx{shrink, expand};

}  // namespace lorry

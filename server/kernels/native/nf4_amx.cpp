// NF4 weights times bf16 rows where the processor multiplies tiles (AMX): each weight is looked up
// once for up to 128 rows, a block at a time, and never leaves the cache.
// A block's sums leave their tiles before they are scaled: weights scaled first would have to be
// rounded to bf16 once more, and answers would depend on how many rows share a batch.
#include <algorithm>
#include <cstring>

#include "nf4.h"

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")
#include "amx.h"
#include "nf4_avx512.h"

namespace lorry {
namespace {

constexpr int kMaxRows = 128;      // their arranged values and sums stay in the second cache
constexpr int kPairRows = 32;      // pairs of weights in a block, which two tiles hold
constexpr int kWaiting = 2;        // tiles whose sums are not added up yet

struct alignas(64) Block {
  __m512i pairs[kPairRows];
};

inline void look_up_block(const uint8_t* packed, __m512i book, Block& block) {
  for (int v = 0; v < kVectors; ++v) {
    const __m512i codes = _mm512_load_si512(packed + v * 64);
    _mm_prefetch((const char*)(packed + v * 64 + 4 * kBlockBytes), _MM_HINT_T0);
#pragma GCC unroll 4
    for (int t = 0; t < 4; ++t) block.pairs[4 * v + t] = look_up(codes, t, book);
  }
}

// Tiles: sums 0 and 1 (of a panel each), rows 2 and 3, weights 4 and 5 (first panel), 6 and 7.
template <int Panels>
void multiply_tile(const bf16* x, int64_t next_x, Sums* sums) {
  _tile_zero(0);
  if constexpr (Panels == 2) _tile_zero(1);
  _tile_loadd(2, x, kTileBytes);
  _tile_dpbf16ps(0, 2, 4);
  if constexpr (Panels == 2) _tile_dpbf16ps(1, 2, 6);
  _tile_loadd(3, x + next_x, kTileBytes);
  _tile_dpbf16ps(0, 3, 5);
  if constexpr (Panels == 2) _tile_dpbf16ps(1, 3, 7);
  _tile_stored(0, sums[0].values, kTileBytes);
  if constexpr (Panels == 2) _tile_stored(1, sums[1].values, kTileBytes);
}

// A block's sums that wait to be scaled and added: done some tiles later, as what a tile stores can
// be read only when it has reached the cache.
struct Pending {
  const Sums* sums = nullptr;
  Sums* totals;
  const uint8_t* scales;
};

template <int Panels>
void settle(const Pending& pending, int64_t next_panel, int height) {
  for (int p = 0; p < Panels; ++p) {
    const __m512 scales = _mm512_load_ps(pending.scales + p * next_panel);
    const auto& sums = pending.sums[p].values;
    auto& totals = pending.totals[p].values;
    for (int r = 0; r < height; ++r)
      _mm512_store_ps(totals[r], _mm512_fmadd_ps(_mm512_load_ps(sums[r]), scales,
                                                 _mm512_load_ps(totals[r])));
  }
}

template <int Panels>
void multiply_panels(const bf16* x, const Split& split, int64_t blocks, const uint8_t* packed,
                     __m512i book, bf16* y, int64_t ldy) {
  const int64_t next_panel = blocks * kBlockBytes, next_x = split.rows * kDepth;
  Sums totals[kMaxRows / kTileRows][Panels], sums[kWaiting][Panels];
  Block weights[2][Panels];
  std::memset(totals, 0, split.tiles * sizeof totals[0]);
  const auto look_up_next = [&](int64_t block) {
    for (int p = 0; p < Panels; ++p)
      look_up_block(packed + p * next_panel + block * kBlockBytes, book, weights[block % 2][p]);
  };
  look_up_next(0);
  Pending waiting[kWaiting];
  int turn = 0;
  for (int64_t block = 0; block < blocks; ++block, x += 2 * next_x) {
    const Block* now = weights[block % 2];
    before_tiles_read();
    _tile_loadd(4, now[0].pairs, kTileBytes);
    _tile_loadd(5, now[0].pairs + kTileRows, kTileBytes);
    if constexpr (Panels == 2) {
      _tile_loadd(6, now[1].pairs, kTileBytes);
      _tile_loadd(7, now[1].pairs + kTileRows, kTileBytes);
    }
    if (block + 1 < blocks) look_up_next(block + 1);
    const uint8_t* scales = packed + block * kBlockBytes + kVectors * 64;
    for (int tile = 0; tile < split.tiles; ++tile, turn = (turn + 1) % kWaiting) {
      if (waiting[turn].sums) settle<Panels>(waiting[turn], next_panel, split.height);
      multiply_tile<Panels>(x + split.first(tile) * kDepth, next_x, sums[turn]);
      waiting[turn] = {sums[turn], totals[tile], scales};
    }
  }
  for (int i = 0; i < kWaiting; ++i) {  // the oldest first, as while there are more to come
    const Pending& pending = waiting[(turn + i) % kWaiting];
    if (pending.sums) settle<Panels>(pending, next_panel, split.height);
  }
  for (int tile = 0; tile < split.tiles; ++tile)
    for (int p = 0; p < Panels; ++p)
      for (int r = 0; r < split.height; ++r) {
        const __m512 total = _mm512_load_ps(totals[tile][p].values[r]);
        _mm256_storeu_si256((__m256i*)(y + (split.first(tile) + r) * ldy + p * kPanel),
                            (__m256i)_mm512_cvtneps_pbh(total));
      }
}

// 32 values of each row after another, as a tile has them: (k/32, rows, 32).
void arrange(const bf16* x, int64_t ldx, int rows, int64_t k, void* arranged) {
  bf16* to = static_cast<bf16*>(arranged);
  for (int64_t i = 0; i < k; i += kDepth)
    for (int r = 0; r < rows; ++r, to += kDepth)
      _mm512_storeu_si512(to, _mm512_loadu_si512(x + r * ldx + i));
}

void multiply(const void* arranged, int rows, int64_t k, const uint8_t* packed,
              int64_t first_panel, int64_t last_panel, bf16* y, int64_t ldy) {
  const Split split(rows);
  const Tiles tiles{{0, 4, split.height}, {4, 4, kTileRows}};
  const int64_t blocks = k / kBlock;
  const __m512i book = code_book();
  const bf16* x = static_cast<const bf16*>(arranged);
  for (int64_t panel = first_panel; panel < last_panel; panel += 2) {
    const auto some = panel + 1 < last_panel ? multiply_panels<2> : multiply_panels<1>;
    some(x, split, blocks, packed + panel * blocks * kBlockBytes, book, y + panel * kPanel, ldy);
  }
}

void pack(const uint8_t* codes, const float* absmax, int64_t k, uint8_t* packed,
          int64_t first_panel, int64_t last_panel) {
  kNf4Avx512.pack(codes, absmax, k, packed, first_panel, last_panel);
}

}  // namespace

const Nf4Kernels kNf4Amx{kMaxRows, sizeof(bf16), pack, arrange, multiply};

}  // namespace lorry

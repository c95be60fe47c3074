// Tiles of AMX: which of the eight there are, and how many rows and bytes a row each has.
// Included after <algorithm> and then `#pragma GCC target` with "amx-tile,amx-bf16".
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

namespace lorry {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileBytes = 64;  // of a row

// What a tile of 16 rows of fp32 sums stores.
struct alignas(64) Sums {
  float values[kTileRows][kTileRows];
};

// Rows in tiles of nearly one size; the last one begins early enough to be full, and computes what
// it shares with the one before a second time, to the same end.
struct Split {
  int rows, tiles, height;
  explicit Split(int rows)
      : rows(rows), tiles((rows + kTileRows - 1) / kTileRows), height((rows + tiles - 1) / tiles) {}
  int first(int tile) const { return std::min(tile * height, rows - height); }
  int repeated(int tile) const { return tile * height - first(tile); }
};

// Between writing memory and a tile reading it: gcc's intrinsics do not say that they read.
inline void before_tiles_read() { __asm__ volatile("" ::: "memory"); }

// Configures this thread's tiles while it lives. oneDNN and vLLM configure their own at each use,
// so none of theirs is in use when an operator starts, and none of ours when it ends.
class Tiles {
 public:
  // Tiles before `first_full` have `rows` rows. A product sums up `depth` values of bf16, an even
  // number: the tile before `first_full` is that wide, the others from there on have a row per pair.
  Tiles(int rows, int first_full, int depth = 2 * kTileRows) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int tile = 0; tile < 8; ++tile) {
      config.bytes[tile] = tile == first_full - 1 ? 2 * depth : kTileBytes;
      config.rows[tile] = tile < first_full ? rows : depth / 2;
    }
    before_tiles_read();
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

}  // namespace
}  // namespace lorry

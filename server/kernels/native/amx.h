// Tiles of AMX: which of the eight there are, and how many rows and bytes a row each has.
// Included after <algorithm> and then `#pragma GCC target` with "amx-tile,amx-bf16".
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>

namespace lorry {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileBytes = 64;  // of a row
constexpr int kDepth = 32;      // values of bf16 in a row: a product of tiles sums up so many

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

// `count` tiles from `first` on, all of one shape. A product of (m rows, 2d bytes) with (d / 2 rows,
// 4n bytes) sums up d values of bf16 into (m rows, 4n bytes); d is even, and n at most 16.
struct TileShape {
  int first, count, rows, bytes = kTileBytes;
};

// Configures this thread's tiles while it lives. oneDNN and vLLM configure their own at each use,
// so none of theirs is in use when an operator starts, and none of ours when it ends.
class Tiles {
 public:
  Tiles(std::initializer_list<TileShape> shapes) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (const TileShape& shape : shapes)
      for (int tile = shape.first; tile < shape.first + shape.count; ++tile) {
        config.rows[tile] = shape.rows;
        config.bytes[tile] = shape.bytes;
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

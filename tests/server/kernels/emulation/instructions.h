// The AVX-512, BF16 and AMX instructions that the kernels use, in plain C++ for processors without
// them, after Intel's Software Developer's Manual (volume 2). `emulated_X` stands for the intrinsic
// `_X`. What would be a fault on the processor is an exception here.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>

namespace {

// ---- Lanes ----------------------------------------------------------------------------------

template <typename T, int Bytes = 64>
struct Lanes {
  static constexpr int kCount = Bytes / sizeof(T);
  T of[kCount];

  Lanes() : of{} {}
  template <typename Vector>
  explicit Lanes(const Vector& vector) {
    static_assert(sizeof vector == Bytes);
    std::memcpy(of, &vector, Bytes);
  }
  template <typename Vector>
  Vector as() const {
    static_assert(sizeof(Vector) == Bytes);
    Vector vector;
    std::memcpy(&vector, of, Bytes);
    return vector;
  }
};

using Floats = Lanes<float>;
using Words = Lanes<uint32_t>;
using Halves = Lanes<uint16_t>;

template <typename Vector, typename T, int Bytes = sizeof(Vector), typename Each>
Vector lanewise(Each each) {
  Lanes<T, Bytes> result;
  for (int i = 0; i < result.kCount; ++i) result.of[i] = each(i);
  return result.template as<Vector>();
}

template <typename Each>
uint16_t mask_where(Each each) {
  uint16_t mask = 0;
  for (int i = 0; i < 16; ++i) mask |= each(i) << i;
  return mask;
}

template <typename Vector>
Vector load_from(const void* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

inline void check_aligned(const void* address) {
  if (reinterpret_cast<uintptr_t>(address) % 64) throw std::runtime_error("64 bytes not aligned");
}

// ---- bf16 -----------------------------------------------------------------------------------

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// BF16 instructions take and give zero for what is denormal.
inline float flushed(float value) {
  const uint32_t bits = bits_of(value);
  return float_of(bits & 0x7f800000 ? bits : bits & 0x80000000);
}

inline float from_bf16(uint16_t value) { return flushed(float_of(uint32_t{value} << 16)); }

inline uint16_t to_bf16(float value) {
  const uint32_t bits = bits_of(flushed(value));
  if (std::isnan(value)) return bits >> 16 | 0x40;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

inline float fused(uint16_t a, uint16_t b, float sum) {
  return flushed(std::fma(from_bf16(a), from_bf16(b), flushed(sum)));
}

// ---- AVX-512 --------------------------------------------------------------------------------

inline __m512 emulated_mm512_setzero_ps() { return __m512{}; }
inline __m512i emulated_mm512_setzero_si512() { return __m512i{}; }
inline __m512 emulated_mm512_set1_ps(float value) {
  return lanewise<__m512, float>([&](int) { return value; });
}
inline __m512i emulated_mm512_set1_epi32(int value) {
  return lanewise<__m512i, uint32_t>([&](int) { return value; });
}
template <typename... Values>
__m512i emulated_mm512_setr_epi32(Values... values) {
  const int all[16] = {values...};
  return load_from<__m512i>(all);
}

inline __m512i emulated_mm512_castps_si512(__m512 a) { return (__m512i)a; }
inline __m512 emulated_mm512_castsi512_ps(__m512i a) { return (__m512)a; }
inline __m512i emulated_mm512_castsi128_si512(__m128i a) {
  Lanes<uint64_t> result;
  for (int i = 0; i < 8; ++i) result.of[i] = i < 2 ? a[i] : 0xdeadbeefdeadbeef;  // undefined
  return result.as<__m512i>();
}

inline __m512i emulated_mm512_loadu_si512(const void* from) { return load_from<__m512i>(from); }
inline __m512i emulated_mm512_load_si512(const void* from) {
  check_aligned(from);
  return load_from<__m512i>(from);
}
inline __m512 emulated_mm512_load_ps(const void* from) {
  check_aligned(from);
  return load_from<__m512>(from);
}
inline void emulated_mm512_storeu_si512(void* to, __m512i a) { std::memcpy(to, &a, sizeof a); }
inline void emulated_mm512_store_si512(void* to, __m512i a) {
  check_aligned(to);
  std::memcpy(to, &a, sizeof a);
}
inline void emulated_mm512_store_ps(void* to, __m512 a) {
  check_aligned(to);
  std::memcpy(to, &a, sizeof a);
}
inline __m512i emulated_mm512_maskz_loadu_epi16(uint32_t mask, const void* from) {
  const auto* values = static_cast<const uint16_t*>(from);
  return lanewise<__m512i, uint16_t>([&](int i) { return mask >> i & 1 ? values[i] : 0; });
}
inline __m256i emulated_mm256_maskz_loadu_epi16(uint16_t mask, const void* from) {
  const auto* values = static_cast<const uint16_t*>(from);
  return lanewise<__m256i, uint16_t>([&](int i) { return mask >> i & 1 ? values[i] : 0; });
}
inline void emulated_mm256_mask_storeu_epi16(void* to, uint16_t mask, __m256i a) {
  const Lanes<uint16_t, 32> values(a);
  for (int i = 0; i < 16; ++i)
    if (mask >> i & 1) static_cast<uint16_t*>(to)[i] = values.of[i];
}

inline __m512 emulated_mm512_add_ps(__m512 a, __m512 b) { return a + b; }
inline __m512 emulated_mm512_sub_ps(__m512 a, __m512 b) { return a - b; }
inline __m512 emulated_mm512_mul_ps(__m512 a, __m512 b) { return a * b; }
inline __m512 emulated_mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  return lanewise<__m512, float>([&](int i) { return std::fma(a[i], b[i], c[i]); });
}
inline __m512 emulated_mm512_abs_ps(__m512 a) {
  return lanewise<__m512, float>([&](int i) { return std::fabs(a[i]); });
}
// The second where they can't be compared.
inline __m512 emulated_mm512_max_ps(__m512 a, __m512 b) {
  return lanewise<__m512, float>([&](int i) { return a[i] > b[i] ? a[i] : b[i]; });
}
inline __m512 emulated_mm512_min_ps(__m512 a, __m512 b) {
  return lanewise<__m512, float>([&](int i) { return a[i] < b[i] ? a[i] : b[i]; });
}
inline __m512i emulated_mm512_add_epi32(__m512i a, __m512i b) {
  const Words x(a), y(b);
  return lanewise<__m512i, uint32_t>([&](int i) { return x.of[i] + y.of[i]; });
}
inline __m512i emulated_mm512_max_epu32(__m512i a, __m512i b) {
  const Words x(a), y(b);
  return lanewise<__m512i, uint32_t>([&](int i) { return x.of[i] > y.of[i] ? x.of[i] : y.of[i]; });
}
inline float emulated_mm512_reduce_add_ps(__m512 a) {
  Floats sums(a);
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i) sums.of[i] += sums.of[i + half];
  return sums.of[0];
}

inline uint16_t emulated_mm512_cmpgt_epu32_mask(__m512i a, __m512i b) {
  const Words x(a), y(b);
  return mask_where([&](int i) { return x.of[i] > y.of[i]; });
}
inline uint16_t emulated_mm512_cmp_ps_mask(__m512 a, __m512 b, int predicate) {
  return mask_where([&](int i) {
    switch (predicate) {
      case _CMP_LE_OQ: return a[i] <= b[i];
      case _CMP_ORD_Q: return !std::isnan(a[i]) && !std::isnan(b[i]);
      default: throw std::logic_error("a comparison that is not emulated");
    }
  });
}
inline __m512 emulated_mm512_maskz_mov_ps(uint16_t mask, __m512 a) {
  return lanewise<__m512, float>([&](int i) { return mask >> i & 1 ? a[i] : 0.0f; });
}

inline __m512i emulated_mm512_slli_epi32(__m512i a, int by) {
  const Words x(a);
  return lanewise<__m512i, uint32_t>([&](int i) { return x.of[i] << by; });
}
inline __m512i emulated_mm512_srli_epi16(__m512i a, int by) {
  const Halves x(a);
  return lanewise<__m512i, uint16_t>([&](int i) { return x.of[i] >> by; });
}
inline __m512i emulated_mm512_cvtepu16_epi32(__m256i a) {
  const Lanes<uint16_t, 32> x(a);
  return lanewise<__m512i, uint32_t>([&](int i) { return x.of[i]; });
}

inline __m512i emulated_mm512_inserti32x4(__m512i a, __m128i b, int lane) {
  Lanes<uint64_t> result(a);
  for (int i = 0; i < 2; ++i) result.of[2 * lane + i] = b[i];
  return result.as<__m512i>();
}
// Of each 128 bits of both, the lower or the upper half in turns.
template <typename T>
__m512i unpacked(__m512i a, __m512i b, bool upper) {
  constexpr int kLane = 16 / sizeof(T);
  const Lanes<T> x(a), y(b);
  return lanewise<__m512i, T>([&](int i) {
    const int from = i / kLane * kLane + i % kLane / 2 + upper * kLane / 2;
    return i % 2 ? y.of[from] : x.of[from];
  });
}
inline __m512i emulated_mm512_unpacklo_epi32(__m512i a, __m512i b) {
  return unpacked<uint32_t>(a, b, false);
}
inline __m512i emulated_mm512_unpackhi_epi32(__m512i a, __m512i b) {
  return unpacked<uint32_t>(a, b, true);
}
inline __m512i emulated_mm512_unpacklo_epi64(__m512i a, __m512i b) {
  return unpacked<uint64_t>(a, b, false);
}
inline __m512i emulated_mm512_unpackhi_epi64(__m512i a, __m512i b) {
  return unpacked<uint64_t>(a, b, true);
}
// Two lanes of 128 bits from each, by two bits a lane.
inline __m512i emulated_mm512_shuffle_i32x4(__m512i a, __m512i b, int lanes) {
  const Words x(a), y(b);
  return lanewise<__m512i, uint32_t>([&](int i) {
    return (i < 8 ? x : y).of[(lanes >> i / 4 * 2 & 3) * 4 + i % 4];
  });
}
inline __m512 emulated_mm512_shuffle_f32x4(__m512 a, __m512 b, int lanes) {
  return (__m512)emulated_mm512_shuffle_i32x4((__m512i)a, (__m512i)b, lanes);
}
inline __m512 emulated_mm512_permutex2var_ps(__m512 a, __m512i which, __m512 b) {
  const Words from(which);
  return lanewise<__m512, float>([&](int i) {
    return (from.of[i] & 16 ? b : a)[from.of[i] & 15];
  });
}
inline __m512i emulated_mm512_permutexvar_epi16(__m512i which, __m512i a) {
  const Halves from(which), x(a);
  return lanewise<__m512i, uint16_t>([&](int i) { return x.of[from.of[i] & 31]; });
}

// ---- AVX512-BF16 ----------------------------------------------------------------------------

inline __m128bh emulated_mm_cvtneps_pbh(__m128 a) {
  return lanewise<__m128bh, uint16_t>([&](int i) { return i < 4 ? to_bf16(a[i]) : 0; });
}
inline __m256bh emulated_mm512_cvtneps_pbh(__m512 a) {
  return lanewise<__m256bh, uint16_t>([&](int i) { return to_bf16(a[i]); });
}
inline __m512bh emulated_mm512_cvtne2ps_pbh(__m512 upper, __m512 lower) {
  return lanewise<__m512bh, uint16_t>(
      [&](int i) { return to_bf16(i < 16 ? lower[i] : upper[i - 16]); });
}
inline __m512 emulated_mm512_dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
  const Halves x(a), y(b);
  return lanewise<__m512, float>([&](int i) {
    const int even = 2 * i, odd = 2 * i + 1;
    return fused(x.of[even], y.of[even], fused(x.of[odd], y.of[odd], sum[i]));
  });
}

// ---- AMX ------------------------------------------------------------------------------------

constexpr int kTiles = 8, kMostRows = 16, kMostBytes = 64;

}  // namespace

// One for each thread, whichever file its code is in, as on the processor.
struct Tile {
  int rows = 0, bytes = 0;  // none before it is configured
  alignas(64) uint8_t of[kMostRows][kMostBytes];

  template <typename T>
  T& at(int row, int column) {
    return reinterpret_cast<T&>(of[row][column * sizeof(T)]);
  }
};

struct TileUnit {
  bool configured = false;
  Tile tiles[kTiles];
};

inline thread_local TileUnit unit;

namespace {

[[noreturn]] inline void fault(const char* what) { throw std::runtime_error(what); }

inline Tile& tile_at(int index) {
  if (!unit.configured) fault("tiles are not configured");
  if (index < 0 || index >= kTiles || unit.tiles[index].rows == 0) fault("no such tile");
  return unit.tiles[index];
}

inline void emulated_tile_release() { unit = {}; }

inline void emulated_tile_loadconfig(const void* from) {
  struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } config;
  std::memcpy(&config, from, sizeof config);
  if (config.palette != 1) fault("no such palette");
  for (uint8_t each : config.reserved)
    if (each) fault("what is reserved must be zero");
  if (unit.configured) fault("tiles that somebody uses would be lost");
  unit.configured = true;
  for (int i = 0; i < 16; ++i) {
    const int rows = config.rows[i], bytes = config.bytes[i];
    if (rows == 0 && bytes == 0) continue;
    if (i >= kTiles || rows == 0 || bytes == 0) fault("half a tile");
    if (rows > kMostRows || bytes > kMostBytes || bytes % 4) fault("no shape of a tile");
    unit.tiles[i].rows = rows;
    unit.tiles[i].bytes = bytes;
  }
}

inline void emulated_tile_zero(int index) {
  Tile& tile = tile_at(index);
  std::memset(tile.of, 0, sizeof tile.of);
}

inline void emulated_tile_loadd(int index, const void* from, int64_t stride) {
  Tile& tile = tile_at(index);
  std::memset(tile.of, 0, sizeof tile.of);
  for (int r = 0; r < tile.rows; ++r)
    std::memcpy(tile.of[r], static_cast<const uint8_t*>(from) + r * stride, tile.bytes);
}

inline void emulated_tile_stored(int index, void* to, int64_t stride) {
  Tile& tile = tile_at(index);
  for (int r = 0; r < tile.rows; ++r)
    std::memcpy(static_cast<uint8_t*>(to) + r * stride, tile.of[r], tile.bytes);
}

// Values with an even index and with an odd one are summed up apart, then both are added.
inline void emulated_tile_dpbf16ps(int to, int left, int right) {
  Tile &sums = tile_at(to), &a = tile_at(left), &b = tile_at(right);
  if (to == left || to == right || left == right) fault("one tile twice");
  if (sums.rows != a.rows || sums.bytes != b.bytes || a.bytes / 4 != b.rows)
    fault("tiles do not fit");
  for (int m = 0; m < sums.rows; ++m)
    for (int n = 0; n < sums.bytes / 4; ++n) {
      float even = 0, odd = 0;
      for (int k = 0; k < b.rows; ++k) {
        even = fused(a.at<uint16_t>(m, 2 * k), b.at<uint16_t>(k, 2 * n), even);
        odd = fused(a.at<uint16_t>(m, 2 * k + 1), b.at<uint16_t>(k, 2 * n + 1), odd);
      }
      float& sum = sums.at<float>(m, n);
      sum = flushed(flushed(sum) + flushed(even + odd));
    }
}

}  // namespace

// NF4 weights times rows, for AVX2 with FMA.
//
// The 16 codes are looked up as two tables of bytes (pshufb), which gives bf16, and widened to fp32.
// A few rows take the weights straight from registers; more share a block that is decoded once.
#include <algorithm>
#include <cstring>

#include "nf4.h"

#pragma GCC target("avx2,fma")
#include "avx2.h"

namespace lorry {
namespace {

// 32 bytes hold 4 weights of 16 columns, k and k+1 in the lower half bytes, k+2 and k+3 in the
// upper ones. Looked up and unpacked, even ones are k's columns in order, and odd ones k+1's.
constexpr int kWeightsPerVector = 4;
constexpr int kVectorBytes = 32;
constexpr int kVectors = kBlock / kWeightsPerVector;
constexpr int kAhead = 4 * kBlockBytes;
constexpr int kFew = 4;          // rows that take their weights from registers
constexpr int kGroup = 6;        // 6 rows x 2 vectors of columns: 12 sums, 2 of weights
constexpr int kMaxRows = 48;     // an L1's worth of x beside the decoded block

constexpr int byte_of(int column, int odd) {
  constexpr int kFours[4] = {0, 16, 8, 24};
  return kFours[column / 4] + column % 4 * 2 + odd;
}

struct Book {
  __m256i low, high;  // bytes of the 16 codes, twice
};

inline Book code_book() {
  alignas(32) uint8_t low[32], high[32];
  for (int i = 0; i < 32; ++i) {
    const bf16 code = code_in_bf16(i % 16);
    low[i] = code & 255;
    high[i] = code >> 8;
  }
  return {_mm256_load_si256((const __m256i*)low), _mm256_load_si256((const __m256i*)high)};
}

// Weights of two neighbours in k, columns 0-7 and 8-15 each.
struct Weights {
  __m256 first[2], second[2];
};

inline Weights look_up(const Book& book, __m256i codes) {
  codes = _mm256_and_si256(codes, _mm256_set1_epi8(15));
  const __m256i low = _mm256_shuffle_epi8(book.low, codes);
  const __m256i high = _mm256_shuffle_epi8(book.high, codes);
  const __m256i left = _mm256_unpacklo_epi8(low, high), right = _mm256_unpackhi_epi8(low, high);
  return {{even(left), even(right)}, {odd(left), odd(right)}};
}

inline __m256i load_codes(const uint8_t* packed, int vector) {
  return _mm256_load_si256((const __m256i*)(packed + vector * kVectorBytes));
}

inline const float* scales_of(const uint8_t* packed) {
  return (const float*)(packed + kVectors * kVectorBytes);
}

inline void write(bf16* y, __m256 left, __m256 right) {
  const __m256i both = _mm256_packus_epi32(round_to_bf16(left), round_to_bf16(right));
  _mm256_storeu_si256((__m256i*)y, _mm256_permute4x64_epi64(both, 0xd8));
}

// x is (k, R).
template <int R>
void multiply_few(const float* x, int64_t blocks, const uint8_t* packed, const Book& book, bf16* y,
                  int64_t ldy) {
  constexpr int kSums = R == 1 ? 4 : R == 2 ? 2 : 1;  // independent ones hide the latency
  __m256 totals[R][2];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) totals[r][0] = totals[r][1] = _mm256_setzero_ps();
  for (int64_t block = 0; block < blocks; ++block, packed += kBlockBytes) {
    __m256 sums[kSums][R][2];
#pragma GCC unroll 8
    for (int s = 0; s < kSums; ++s)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sums[s][r][0] = sums[s][r][1] = _mm256_setzero_ps();
    const auto add = [&](const __m256 (&weights)[2], int k, int s) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m256 value = _mm256_broadcast_ss(x + k * R + r);
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h)
          sums[s % kSums][r][h] = _mm256_fmadd_ps(weights[h], value, sums[s % kSums][r][h]);
      }
    };
    for (int v = 0; v < kVectors; ++v, x += kWeightsPerVector * R) {
      const __m256i codes = load_codes(packed, v);
      if (v % 2 == 0) prefetch(packed + v * kVectorBytes + kAhead);
      const Weights lower = look_up(book, codes);
      add(lower.first, 0, 0);
      add(lower.second, 1, 1);
      const Weights upper = look_up(book, _mm256_srli_epi16(codes, 4));
      add(upper.first, 2, 2);
      add(upper.second, 3, 3);
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m256 scales = _mm256_load_ps(scales_of(packed) + 8 * h);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        __m256 sum = sums[0][r][h];
#pragma GCC unroll 4
        for (int s = 1; s < kSums; ++s) sum = _mm256_add_ps(sum, sums[s][r][h]);
        totals[r][h] = _mm256_fmadd_ps(sum, scales, totals[r][h]);
      }
    }
  }
  for (int r = 0; r < R; ++r) write(y + r * ldy, totals[r][0], totals[r][1]);
}

// A block's weights as fp32, (64, 16).
inline void decode(const uint8_t* packed, const Book& book, float* weights) {
  for (int v = 0; v < kVectors; ++v) {
    const __m256i codes = load_codes(packed, v);
    if (v % 2 == 0) prefetch(packed + v * kVectorBytes + kAhead);
    for (int half = 0; half < 2; ++half, weights += 2 * kPanel) {
      const Weights w = look_up(book, half ? _mm256_srli_epi16(codes, 4) : codes);
      _mm256_store_ps(weights, w.first[0]);
      _mm256_store_ps(weights + 8, w.first[1]);
      _mm256_store_ps(weights + 16, w.second[0]);
      _mm256_store_ps(weights + 24, w.second[1]);
    }
  }
}

// totals[0:R, 16 columns] += scales * (x . weights) of one block; x is (64, R).
template <int R>
void multiply_block(const float* x, const float* weights, const float* scales, float* totals) {
  __m256 sums[R][2];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_ps();
#pragma GCC unroll 2
  for (int k = 0; k < kBlock; ++k, weights += kPanel, x += R) {
    const __m256 left = _mm256_load_ps(weights), right = _mm256_load_ps(weights + 8);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m256 value = _mm256_broadcast_ss(x + r);
      sums[r][0] = _mm256_fmadd_ps(left, value, sums[r][0]);
      sums[r][1] = _mm256_fmadd_ps(right, value, sums[r][1]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      float* total = totals + r * kPanel + 8 * h;
      _mm256_store_ps(total, _mm256_fmadd_ps(sums[r][h], _mm256_load_ps(scales + 8 * h),
                                             _mm256_load_ps(total)));
    }
}

constexpr decltype(&multiply_few<1>) kFewRows[kFew] = {multiply_few<1>, multiply_few<2>,
                                                       multiply_few<3>, multiply_few<4>};
constexpr decltype(&multiply_block<1>) kBlocks[kGroup] = {multiply_block<1>, multiply_block<2>,
                                                          multiply_block<3>, multiply_block<4>,
                                                          multiply_block<5>, multiply_block<6>};

// Rows in groups of nearly the same size.
struct Groups {
  int rows;
  int count() const { return rows <= kFew ? 1 : (rows + kGroup - 1) / kGroup; }
  int first(int group) const { return group * rows / count(); }
  int size(int group) const { return first(group + 1) - first(group); }
};

void multiply_many(const float* x, Groups groups, int64_t k, const uint8_t* packed,
                   const Book& book, bf16* y, int64_t ldy) {
  alignas(32) float weights[kBlock * kPanel];
  alignas(32) float totals[kMaxRows * kPanel] = {};
  for (int64_t at = 0; at < k; at += kBlock, packed += kBlockBytes) {
    decode(packed, book, weights);
    for (int g = 0; g < groups.count(); ++g) {
      const int first = groups.first(g), size = groups.size(g);
      kBlocks[size - 1](x + first * k + at * size, weights, scales_of(packed),
                        totals + first * kPanel);
    }
  }
  for (int r = 0; r < groups.rows; ++r)
    write(y + r * ldy, _mm256_load_ps(totals + r * kPanel), _mm256_load_ps(totals + r * kPanel + 8));
}

void pack(const uint8_t* codes, const float* absmax, int64_t k, uint8_t* packed,
          int64_t first_panel, int64_t last_panel) {
  const int64_t blocks = k / kBlock;
  for (int64_t panel = first_panel; panel < last_panel; ++panel)
    for (int64_t block = 0; block < blocks; ++block) {
      uint8_t* to = packed + (panel * blocks + block) * kBlockBytes;
      for (int v = 0; v < kVectors; ++v)
        for (int c = 0; c < kPanel; ++c)
          for (int i = 0; i < 2; ++i) {
            const int64_t at =
                (panel * kPanel + c) * k + block * kBlock + v * kWeightsPerVector + i;
            to[v * kVectorBytes + byte_of(c, i)] = code_at(codes, at) | code_at(codes, at + 2) << 4;
          }
      pack_scales(absmax, panel, block, blocks, to + kVectors * kVectorBytes);
    }
}

// As fp32, group after group: (k, rows of the group).
void arrange(const bf16* x, int64_t ldx, int rows, int64_t k, void* arranged) {
  const Groups groups{rows};
  uint32_t* to = static_cast<uint32_t*>(arranged);
  for (int g = 0; g < groups.count(); ++g)
    for (int64_t i = 0; i < k; ++i)
      for (int r = groups.first(g); r < groups.first(g + 1); ++r)
        *to++ = (uint32_t)x[r * ldx + i] << 16;
}

void multiply(const void* arranged, int rows, int64_t k, const uint8_t* packed,
              int64_t first_panel, int64_t last_panel, bf16* y, int64_t ldy) {
  const Book book = code_book();
  const float* x = static_cast<const float*>(arranged);
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    const uint8_t* weights = packed + panel * (k / kBlock) * kBlockBytes;
    bf16* to = y + panel * kPanel;
    if (rows <= kFew) kFewRows[rows - 1](x, k / kBlock, weights, book, to, ldy);
    else multiply_many(x, {rows}, k, weights, book, to, ldy);
  }
}

}  // namespace

const Nf4Kernels kNf4Avx2{kMaxRows, sizeof(float), pack, arrange, multiply};

}  // namespace lorry

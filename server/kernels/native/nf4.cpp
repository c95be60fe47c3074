// NF4 weights times bf16 rows. A weight is looked up in a register and goes straight into the
// product: nothing is dequantised to memory, so a pass reads 4.5 bits per weight.
// For AVX-512 with BF16.
#include <array>
#include <cstring>
#include <utility>

#include "nf4.h"

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#include "nf4_avx512.h"

namespace lorry {
namespace {

constexpr int kMaxRows = 13;  // the sums stay in registers

template <int R>
void multiply_panel(const bf16* x, int64_t blocks, const uint8_t* packed, __m512i book, bf16* y,
                    int64_t ldy) {
  // Few rows leave registers for several independent sums, which hide the product's latency.
  constexpr int kSums = R <= 2 ? 4 : R <= 5 ? 2 : 1;
  constexpr bool kKeepTotals = R * (kSums + 1) <= 26;
  alignas(64) float totals[kMaxRows][kPanel];
  __m512 kept[R];
#pragma GCC unroll 32
  for (int r = 0; r < R; ++r) {
    if constexpr (kKeepTotals) kept[r] = _mm512_setzero_ps();
    else _mm512_store_ps(totals[r], _mm512_setzero_ps());
  }
  for (int64_t block = 0; block < blocks; ++block, packed += kBlockBytes) {
    __m512 sums[R][kSums];
#pragma GCC unroll 32
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int s = 0; s < kSums; ++s) sums[r][s] = _mm512_setzero_ps();
    for (int v = 0; v < kVectors; ++v) {
      const __m512i codes = _mm512_load_si512(packed + v * 64);
      _mm_prefetch((const char*)(packed + v * 64 + 4 * kBlockBytes), _MM_HINT_T0);
#pragma GCC unroll 4
      for (int t = 0; t < 4; ++t) {
        const __m512bh weights = (__m512bh)look_up(codes, t, book);
#pragma GCC unroll 32
        for (int r = 0; r < R; ++r) {
          int32_t pair;
          std::memcpy(&pair, x + (t * R + r) * 2, sizeof pair);
          __m512& sum = sums[r][t % kSums];
          sum = _mm512_dpbf16_ps(sum, weights, (__m512bh)_mm512_set1_epi32(pair));
        }
      }
      x += kWeightsPerVector * R;
    }
    const __m512 scales = _mm512_load_ps(packed + kVectors * 64);
#pragma GCC unroll 32
    for (int r = 0; r < R; ++r) {
      __m512 sum = sums[r][0];
#pragma GCC unroll 4
      for (int s = 1; s < kSums; ++s) sum = _mm512_add_ps(sum, sums[r][s]);
      if constexpr (kKeepTotals) kept[r] = _mm512_fmadd_ps(sum, scales, kept[r]);
      else _mm512_store_ps(totals[r], _mm512_fmadd_ps(sum, scales, _mm512_load_ps(totals[r])));
    }
  }
#pragma GCC unroll 32
  for (int r = 0; r < R; ++r) {
    const __m512 total = kKeepTotals ? kept[r] : _mm512_load_ps(totals[r]);
    _mm256_storeu_si256((__m256i*)(y + r * ldy), (__m256i)_mm512_cvtneps_pbh(total));
  }
}

using Multiply = void (*)(const bf16*, int64_t, const uint8_t*, __m512i, bf16*, int64_t);

template <int... R>
constexpr auto by_rows(std::integer_sequence<int, R...>) {
  return std::array<Multiply, sizeof...(R)>{multiply_panel<R + 1>...};
}

void pack(const uint8_t* codes, const float* absmax, int64_t k, uint8_t* packed,
          int64_t first_panel, int64_t last_panel) {
  const int64_t blocks = k / kBlock;
  for (int64_t panel = first_panel; panel < last_panel; ++panel)
    for (int64_t block = 0; block < blocks; ++block) {
      uint8_t* to = packed + (panel * blocks + block) * kBlockBytes;
      for (int v = 0; v < kVectors; ++v)
        for (int word = 0; word < 32; ++word) {
          const int64_t column = panel * kPanel + word / 2;
          const int64_t at = column * k + block * kBlock + v * kWeightsPerVector + word % 2;
          uint16_t bits = 0;
          for (int t = 0; t < 4; ++t) bits |= (uint16_t)(code_at(codes, at + 2 * t) << (4 * t));
          std::memcpy(to + v * 64 + word * 2, &bits, sizeof bits);
        }
      pack_scales(absmax, panel, block, blocks, to + kVectors * 64);
    }
}

// Pairs of neighbours in k, row after row: (k/2, rows, 2).
void interleave(const bf16* x, int64_t ldx, int rows, int64_t k, void* arranged) {
  bf16* interleaved = static_cast<bf16*>(arranged);
  for (int r = 0; r < rows; ++r)
    for (int64_t i = 0; i < k / 2; ++i)
      std::memcpy(interleaved + (i * rows + r) * 2, x + r * ldx + 2 * i, 4);
}

void multiply(const void* arranged, int rows, int64_t k, const uint8_t* packed,
              int64_t first_panel, int64_t last_panel, bf16* y, int64_t ldy) {
  static constexpr auto kernels = by_rows(std::make_integer_sequence<int, kMaxRows>{});
  const int64_t blocks = k / kBlock;
  const __m512i book = code_book();
  const bf16* interleaved = static_cast<const bf16*>(arranged);
  for (int64_t panel = first_panel; panel < last_panel; ++panel)
    kernels[rows - 1](interleaved, blocks, packed + panel * blocks * kBlockBytes, book,
                      y + panel * kPanel, ldy);
}

}  // namespace

const Nf4Kernels kNf4Avx512{kMaxRows, sizeof(bf16), pack, interleave, multiply};

}  // namespace lorry

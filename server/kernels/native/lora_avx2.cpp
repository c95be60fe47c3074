// As lora.cpp, for AVX2 with FMA: bf16 is widened to fp32 in registers.
#include "kernels.h"

#include <algorithm>
#include <cstring>
#include <vector>

#pragma GCC target("avx2,fma")
#include "avx2.h"

namespace lorry {
namespace {

constexpr int kLanes = 8;         // fp32 values in a vector
constexpr int kStep = 16;         // bf16 values in a vector
constexpr int kShrinkRows = 3;    // 3 rows x 4 ranks: 12 sums, 3 vectors of x, 1 of A
constexpr int kExpandRows = 3;    // 3 rows x 4 vectors of columns: 12 sums, 3 ranks, 1 vector of B
constexpr int kVectors = 4;
constexpr int kTile = kVectors * kLanes;
constexpr int kAhead = 32;        // columns of B to fetch ahead

// Two neighbouring ranks of 8 columns. A struct, as templates lose a vector type's alignment.
struct alignas(32) Pairs {
  __m256i values;
};

#define INLINE __attribute__((always_inline))  // else a lambda would keep the sums in memory

// The same number, unknown to the compiler: what is loaded at it is loaded again, as there are no
// registers that could keep it.
template <typename T>
inline T another(T number) {
  asm("" : "+r"(number));
  return number;
}

inline __m256i load_tail(const bf16* p, int64_t count) {
  bf16 values[kStep] = {};
  std::memcpy(values, p, count * sizeof *p);
  return load(values);
}

inline float sum_of(__m256 v) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

inline bf16 round_to_bf16(float value) {
  return (bf16)_mm256_extract_epi16(round_to_bf16(_mm256_set1_ps(value)), 0);
}

template <int R, int J>
void shrink_tile(const bf16* const* x, const bf16* a, int64_t width, float scale, bf16* shrunk,
                 int64_t lds) {
  __m256 sums[R][J];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) sums[r][j] = _mm256_setzero_ps();

  const auto half_step = [&](auto get, auto widen, int64_t k) INLINE {
    __m256 values[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) values[r] = widen(get(x[r] + k));
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
      const __m256 weights = widen(get(a + j * width + k));
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sums[r][j] = _mm256_fmadd_ps(weights, values[r], sums[r][j]);
    }
  };
  const auto step = [&](auto get, int64_t k) INLINE {
    half_step(get, even, k);
    half_step(get, odd, another(k));
  };
  int64_t k = 0;
  for (; k + kStep <= width; k += kStep) {
    if (k % (2 * kStep) == 0)  // the next tile's; in decode all A is cold
#pragma GCC unroll 8
      for (int j = 0; j < J; ++j) prefetch(a + (j + J) * width + k);
    step([](const bf16* p) { return load(p); }, k);
  }
  if (k < width) step([=](const bf16* p) { return load_tail(p, width - k); }, k);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) shrunk[r * lds + j] = round_to_bf16(sum_of(sums[r][j]) * scale);
}

// A tile's columns stand in its vectors as unpacking 16-bit values leaves them: 0-3 and 8-11, 4-7
// and 12-15, then the same from 16 on. So y is widened and narrowed without crossing lanes.
constexpr int first_column(int vector) { return vector / 2 * 16 + vector % 2 * 4; }

// 8 columns of B as pairs of ranks: pairs[p] holds ranks 2p and 2p+1 of every column. Columns at
// or beyond `last` repeat the one before it, and are never written.
inline void transpose_columns(const Expand& job, int64_t column, int64_t last, Pairs* pairs) {
  const bf16* from[kLanes];
  for (int c = 0; c < kLanes; ++c) {
    from[c] = job.b + std::min(column + c + c / 4 * 4, last - 1) * job.ldb;
    prefetch(from[c] + kAhead * job.ldb);
  }
  for (int p = 0; p < job.rank; p += kRankStep, pairs += 4) {
    __m256i v[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      v[i] = _mm256_loadu2_m128i((const __m128i*)(from[i + 4] + p), (const __m128i*)(from[i] + p));
    const __m256i low01 = _mm256_unpacklo_epi32(v[0], v[1]);
    const __m256i low23 = _mm256_unpacklo_epi32(v[2], v[3]);
    const __m256i high01 = _mm256_unpackhi_epi32(v[0], v[1]);
    const __m256i high23 = _mm256_unpackhi_epi32(v[2], v[3]);
    pairs[0].values = _mm256_unpacklo_epi64(low01, low23);
    pairs[1].values = _mm256_unpackhi_epi64(low01, low23);
    pairs[2].values = _mm256_unpacklo_epi64(high01, high23);
    pairs[3].values = _mm256_unpackhi_epi64(high01, high23);
  }
}

// Whether no value of a tile has to be repaired: as integers without their sign, NaN and infinity
// are larger than any bound.
template <int R>
inline bool is_bounded(const __m256 (&sums)[R][kVectors], float bound) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i largest = _mm256_setzero_si256();
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      largest = _mm256_max_epi32(
          largest, _mm256_and_si256(_mm256_castps_si256(sums[r][v]), magnitude));
  const __m256i limit = _mm256_castps_si256(_mm256_set1_ps(bound));
  return _mm256_testz_si256(_mm256_cmpgt_epi32(largest, limit), _mm256_set1_epi32(-1));
}

// y[0:16] += the two vectors of a tile that hold these columns.
inline void add_to(bf16* y, __m256 first, __m256 second) {
  const __m256i old = load(y), zero = _mm256_setzero_si256();
  first = _mm256_add_ps(first, _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, old)));
  second = _mm256_add_ps(second, _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, old)));
  const __m256i sums = _mm256_packus_epi32(round_to_bf16(first), round_to_bf16(second));
  _mm256_storeu_si256((__m256i*)y, sums);
}

// vLLM reads freed blocks of the KV cache as zero times what is left there, so one non-finite
// value that an adapter put into its own rows would reach whoever gets the block next.
inline float bounded(float delta, float bound, int64_t& repaired) {
  if (delta >= -bound && delta <= bound) return delta;
  ++repaired;
  return delta != delta ? 0 : std::clamp(delta, -bound, bound);
}

// A tile that has values to repair or less than kTile columns, or overwrites: value by value.
int64_t write_slowly(const __m256 (&sums)[kVectors], const Expand& job, bf16* y, int columns) {
  float deltas[kTile];
  for (int v = 0; v < kVectors; ++v)
    _mm256_storeu2_m128(deltas + first_column(v) + 8, deltas + first_column(v), sums[v]);
  int64_t repaired = 0;
  for (int c = 0; c < columns; ++c) {
    const uint32_t bits = (uint32_t)y[c] << 16;
    float old;
    std::memcpy(&old, &bits, sizeof old);
    const float delta = bounded(deltas[c], job.bound, repaired);
    y[c] = round_to_bf16(job.add ? old + delta : delta);
  }
  return repaired;
}

// y[R rows, kTile columns], of which those before `width` exist.
template <int R>
int64_t expand_tile(const Expand& job, int row, const Pairs* pairs, int64_t column,
                    int64_t width) {
  __m256 sums[R][kVectors];
  const bf16* shrunk = job.shrunk + row * job.lds;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm256_setzero_ps();
  const int steps = job.rank / 2;
  const auto half_step = [&](auto widen, int p) INLINE {
    __m256 values[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      int32_t pair;
      std::memcpy(&pair, shrunk + r * job.lds + 2 * p, sizeof pair);
      values[r] = widen(_mm256_set1_epi32(pair));
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const __m256 weights = widen(pairs[p + v * steps].values);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sums[r][v] = _mm256_fmadd_ps(weights, values[r], sums[r][v]);
    }
  };
  for (int p = 0; p < steps; ++p) {
    half_step(even, p);
    half_step(odd, another(p));
  }
  const auto y_of = [&](int r) { return job.y + job.rows[row + r] * job.ldy + column; };
  if (__builtin_expect(job.add && width >= kTile && is_bounded(sums, job.bound), 1)) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      bf16* y = y_of(r);
      if (row + R + r < job.count) prefetch(y_of(R + r));
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; v += 2) add_to(y + v * kLanes, sums[r][v], sums[r][v + 1]);
    }
    return 0;
  }
  int64_t repaired = 0;
  for (int r = 0; r < R; ++r)
    repaired += write_slowly(sums[r], job, y_of(r), (int)std::min<int64_t>(width, kTile));
  return repaired;
}

constexpr decltype(&expand_tile<1>) kExpandTiles[kExpandRows] = {expand_tile<1>, expand_tile<2>,
                                                                 expand_tile<3>};

template <int R, int J>
void shrink_rows(const bf16* const* x, const bf16* a, int64_t width, int rank, float scale,
                 bf16* shrunk, int64_t lds) {
  for (int j = 0; j < rank; j += J)
    shrink_tile<R, J>(x, a + j * width, width, scale, shrunk + j, lds);
}

// One row alone takes 8 ranks at once: fewer sums would wait for one another.
constexpr decltype(&shrink_rows<1, 8>) kShrinkRowsOf[kShrinkRows] = {
    shrink_rows<1, 8>, shrink_rows<2, 4>, shrink_rows<3, 4>};

void shrink(const bf16* x, int64_t ldx, const int32_t* rows, int count, const bf16* a,
            int64_t width, int rank, float scale, bf16* shrunk, int64_t lds) {
  for (int i = 0; i < count; i += kShrinkRows) {
    const int height = std::min(count - i, kShrinkRows);
    const bf16* from[kShrinkRows];
    for (int r = 0; r < height; ++r) from[r] = x + rows[i + r] * ldx;
    kShrinkRowsOf[height - 1](from, a, width, rank, scale, shrunk + i * lds, lds);
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
      transpose_columns(job, first + t * kTile + first_column(v), last,
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

const LoraKernels kLoraAvx2{shrink, expand};

}  // namespace lorry

// Arithmetic on plain pointers: no PyTorch, no threads. Needs AVX-512 with BF16 (see `supported`).
// bf16 values are passed as their 16 bits; every leading dimension counts elements, not bytes.
#pragma once

#include <cstdint>

namespace lorry {

using bf16 = uint16_t;

bool supported();

// ---- LoRA (lora.cpp) ------------------------------------------------------------------------

constexpr int kRankStep = 8;  // ranks are handled in eights: slots are padded with zeros

// shrunk[i, 0:rank] = scale * A[0:rank] . x[rows[i]] for `count` rows; A is (rank, width).
void lora_shrink(const bf16* x, int64_t ldx, const int32_t* rows, int count, const bf16* a,
                 int64_t width, int rank, float scale, bf16* shrunk, int64_t lds);

struct Expand {
  bf16* y;  // first column of the slice
  int64_t ldy;
  const int32_t* rows;
  int count;
  const bf16* shrunk;
  int64_t lds;
  const bf16* b;  // (columns, ldb), of which the first `rank` of each row are used
  int64_t ldb;
  int rank;
  float bound;  // largest magnitude that is added to y
  bool add;     // else y is overwritten
};

// y[rows[i], first:last] += B[first:last, 0:rank] . shrunk[i], each term made finite and bounded
// before it is added. Returns how many terms had to be.
int64_t lora_expand(const Expand& job, int64_t first, int64_t last);

// ---- NF4 (nf4.cpp) --------------------------------------------------------------------------

constexpr int kPanel = 16;         // output columns that one vector holds
constexpr int kBlock = 64;         // weights that share an absmax (bitsandbytes' default)
constexpr int kBlockBytes = 576;   // 16 columns x 64 weights x 4 bit, then 16 fp32 scales
constexpr int kMaxRows = 13;       // rows that one pass over the weights serves

// bitsandbytes' (n, k) codes, two to a byte, and one absmax per 64 -> (n/16, k/64, 576 bytes).
void nf4_pack(const uint8_t* codes, const float* absmax, int64_t k, uint8_t* packed,
              int64_t first_panel, int64_t last_panel);

// x (rows, k) -> pairs of neighbours in k, row after row: (k/2, rows, 2).
void nf4_interleave(const bf16* x, int64_t ldx, int rows, int64_t k, bf16* interleaved);

// y[0:rows, panels] = x . W^T for `rows` <= 24 interleaved rows.
void nf4_multiply(const bf16* interleaved, int rows, int64_t k, const uint8_t* packed,
                  int64_t first_panel, int64_t last_panel, bf16* y, int64_t ldy);

}  // namespace lorry

// Arithmetic on plain pointers: no PyTorch, no threads. Once for AMX (lora_amx*.cpp, nf4_amx.cpp),
// once for AVX-512 with BF16 (lora.cpp, nf4.cpp) and once for AVX2 with FMA (lora_avx2.cpp,
// nf4_avx2.cpp); dispatch.cpp chooses.
// bf16 values are passed as their 16 bits; every leading dimension counts elements, not bytes.
#pragma once

#include <cstdint>
#include <string_view>

namespace lorry {

using bf16 = uint16_t;

// ---- LoRA -----------------------------------------------------------------------------------

constexpr int kRankStep = 8;  // ranks are handled in eights: slots are padded with zeros

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

struct LoraKernels {
  // shrunk[i, 0:rank] = scale * A[0:rank] . x[rows[i]] for `count` rows; A is (rank, width).
  void (*shrink)(const bf16* x, int64_t ldx, const int32_t* rows, int count, const bf16* a,
                 int64_t width, int rank, float scale, bf16* shrunk, int64_t lds);

  // y[rows[i], first:last] += B[first:last, 0:rank] . shrunk[i], each term made finite and bounded
  // before it is added. Returns the number of repaired terms.
  int64_t (*expand)(const Expand& job, int64_t first, int64_t last);
};

// ---- NF4 ------------------------------------------------------------------------------------

constexpr int kPanel = 16;         // output columns that are handled together
constexpr int kBlock = 64;         // weights that share an absmax (bitsandbytes' default)
constexpr int kBlockBytes = 576;   // 16 columns x 64 weights x 4 bit, then 16 fp32 scales

struct Nf4Kernels {
  int max_rows;         // that one pass over the weights serves
  int bytes_per_value;  // of x as `arrange` leaves it

  // bitsandbytes' (n, k) codes, two to a byte, and one absmax per 64 -> (n/16, k/64, 576 bytes).
  // Each has an order of its own within the block.
  void (*pack)(const uint8_t* codes, const float* absmax, int64_t k, uint8_t* packed,
               int64_t first_panel, int64_t last_panel);

  // x (rows, k) in the order in which `multiply` reads it.
  void (*arrange)(const bf16* x, int64_t ldx, int rows, int64_t k, void* arranged);

  // y[0:rows, panels] = x . W^T for `rows` <= max_rows arranged rows.
  void (*multiply)(const void* arranged, int rows, int64_t k, const uint8_t* packed,
                   int64_t first_panel, int64_t last_panel, bf16* y, int64_t ldy);
};

extern const LoraKernels kLoraAmx, kLoraAmxFew, kLoraAvx512, kLoraAvx2;
extern const Nf4Kernels kNf4Amx, kNf4Avx512, kNf4Avx2;

// ---- The choice (dispatch.cpp) --------------------------------------------------------------

struct Kernels {
  const char* instructions;  // what the processor must have
  bool (*run_here)();
  const LoraKernels& lora;
  const Nf4Kernels& nf4;
};

// The first that run here, or null.
const Kernels* kernels();

// For tests: those for the named instructions, or the first again ("" or what does not run here).
void use(std::string_view instructions);

}  // namespace lorry

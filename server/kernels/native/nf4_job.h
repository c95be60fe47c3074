// One linear layer's NF4 product for a whole batch, cut into pieces that threads share.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "operands.h"

namespace lorry {

class Nf4Job {
 public:
  Nf4Job(const Tensor& y, const Tensor& x, const Tensor& packed)
      : y_(y), x_(x), packed_(packed), nf4_(checked_kernels().nf4) {
    passes_ = (x.size(0) + nf4_.max_rows - 1) / nf4_.max_rows;
    arranged_ = at::empty({x.size(0), k() * nf4_.bytes_per_value}, packed.options());
    const int64_t threads = at::get_num_threads();
    chunk_ = std::clamp<int64_t>(panels() / (4 * threads), 1, 8);
    chunks_ = (panels() + chunk_ - 1) / chunk_;
    // Few rows: each weight is read by one thread only. Many: each thread keeps to its own rows.
    by_panel_ = passes_ < 4 * threads;
  }

  static Tensor output(const Tensor& x, const Tensor& packed) {
    check_rows(x, "x");
    TORCH_CHECK(packed.scalar_type() == at::kByte && packed.dim() == 3 && packed.is_contiguous() &&
                packed.size(1) > 0 && packed.size(2) == kBlockBytes);
    TORCH_CHECK(reinterpret_cast<uintptr_t>(packed.const_data_ptr()) % 64 == 0,
                "packed weights must begin where a line of the cache does");
    TORCH_CHECK(x.size(1) == packed.size(1) * kBlock);
    return at::empty({x.size(0), packed.size(0) * kPanel}, x.options());
  }

  int64_t arranges() const { return passes_; }
  int64_t multiplies() const { return passes_ * chunks_; }

  void arrange(int64_t pass) const {
    const int64_t row = first_row(pass);
    nf4_.arrange(read(x_) + row * x_.stride(0), x_.stride(0), first_row(pass + 1) - row, k(),
                 arranged_at(row));
  }

  // After all of arrange.
  void multiply(int64_t i) const {
    const int64_t pass = by_panel_ ? i % passes_ : i / chunks_;
    const int64_t panel = (by_panel_ ? i / passes_ : i % chunks_) * chunk_;
    const int64_t row = first_row(pass), last = std::min(panel + chunk_, panels());
    nf4_.multiply(arranged_at(row), first_row(pass + 1) - row, k(),
                  packed_.const_data_ptr<uint8_t>(), panel, last, write(y_) + row * y_.size(1),
                  y_.size(1));
  }

 private:
  int64_t k() const { return packed_.size(1) * kBlock; }
  int64_t panels() const { return packed_.size(0); }
  int64_t first_row(int64_t pass) const { return pass * x_.size(0) / passes_; }
  uint8_t* arranged_at(int64_t row) const {
    return arranged_.mutable_data_ptr<uint8_t>() + row * arranged_.size(1);
  }

  const Tensor &y_, &x_, &packed_;
  const Nf4Kernels& nf4_;
  Tensor arranged_;
  int64_t passes_, chunk_, chunks_;
  bool by_panel_;
};

}  // namespace lorry

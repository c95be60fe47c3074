// A linear layer's adapters, a slot for each: where A and B of its parts (q, k and v) lie in memory.
#pragma once

#include <vector>

#include "operands.h"

namespace lorry {

class Slots {
 public:
  // A is (ranks, width), B is (columns, ranks); strides lead from slot to slot.
  struct Part {
    const bf16 *a, *b;
    int64_t a_stride, b_stride, columns;
  };

  // Matrices that lie anywhere: (slots, 1, ranks, width) and (slots, 1, columns, ranks) per part.
  Slots(at::TensorList a, at::TensorList b) {
    TORCH_CHECK(a.size() == b.size() && !a.empty());
    parts_.reserve(a.size());
    for (size_t i = 0; i < a.size(); ++i) {
      check_matrices(a[i], "a");
      check_matrices(b[i], "b");
      TORCH_CHECK(a[i].sizes() == a[0].sizes() && b[i].size(0) == a[0].size(0) &&
                  b[i].size(3) == a[0].size(2));
      parts_.push_back({read(a[i]), read(b[i]), a[i].stride(0), b[i].stride(0), b[i].size(2)});
    }
    count_ = a[0].size(0), ranks_ = a[0].size(2), width_ = a[0].size(3);
    check_ranks();
  }

  // All in one tensor, as server/kernels/slots.py joins them: a row for each slot, in it A
  // of each part and then B of each.
  Slots(const Tensor& joined, at::IntArrayRef columns, int64_t ranks, int64_t width)
      : count_(joined.size(0)), ranks_(ranks), width_(width) {
    check_rows(joined, "slots");
    const int64_t stride = joined.size(1), parts = columns.size();
    bool fits = joined.is_contiguous() && width <= stride;
    int64_t of_rank = 0;
    for (int64_t i = 0; fits && i < parts; ++i) {
      fits = 0 <= columns[i] && columns[i] <= stride;
      of_rank += fits ? width + columns[i] : 0;
      fits = fits && of_rank <= stride;
    }
    TORCH_CHECK(fits && of_rank > 0 && stride % of_rank == 0 && stride / of_rank == ranks,
                "slots are not those of a layer with such inputs, outputs and ranks");
    parts_.reserve(parts);
    const bf16 *a = read(joined), *b = a + parts * ranks * width;
    for (const int64_t each : columns) {
      parts_.push_back({a, b, stride, stride, each});
      a += ranks * width, b += each * ranks;
    }
    check_ranks();
  }

  int64_t count() const { return count_; }
  int64_t ranks() const { return ranks_; }  // of the padded matrices
  int64_t width() const { return width_; }
  const std::vector<Part>& parts() const { return parts_; }

 private:
  static void check_matrices(const Tensor& t, const char* name) {
    TORCH_CHECK(t.scalar_type() == at::kBFloat16 && t.dim() == 4 && t.size(1) == 1 &&
                    t.stride(3) == 1 && t.stride(2) == t.size(3),
                name, " must be bfloat16 (slots, 1, rows, columns), each slot contiguous");
  }
  void check_ranks() const { TORCH_CHECK(ranks_ % kRankStep == 0, "ranks must be in eights"); }

  std::vector<Part> parts_;
  int64_t count_, ranks_, width_;
};

}  // namespace lorry

// One linear layer's LoRA for a whole batch, cut into pieces that threads share.
#pragma once

#include <ATen/ops/empty.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "operands.h"

namespace lorry {

// See server/kernels/plan.py. It is whole: its segments follow each other and end within it.
class Plan {
 public:
  explicit Plan(const Tensor& plan) : data_(plan.const_data_ptr<int32_t>()) {
    const int64_t size = plan.numel();
    bool fits = plan.is_contiguous() && size >= 2 && data_[0] >= 0 &&
                2 + 4 * int64_t(data_[0]) <= data_[1] && data_[1] <= size;
    for (int i = 0; fits && i < segments(); ++i) {
      fits = segment(i)[2] == rows_ && segment(i)[3] >= 0;
      rows_ += segment(i)[3];
    }
    TORCH_CHECK(fits && (rows_ == 0 || rows_ <= size - data_[1]), "the plan is not whole");
  }
  int segments() const { return data_[0]; }
  const int32_t* segment(int i) const { return data_ + 2 + 4 * i; }  // slot, rank, first row, rows
  const int32_t* rows() const { return data_ + data_[1]; }
  int64_t count() const { return rows_; }  // of all rows

 private:
  const int32_t* const data_;
  int64_t rows_ = 0;
};

struct LoraOperands {
  const Tensor &y, &x;
  at::TensorList a, b;
  const Tensor &plan, &repaired;
  double scale, bound;
  bool add;
};

class LoraJob {
 public:
  explicit LoraJob(const LoraOperands& of)
      : of_(of),
        plan_(of.plan),
        repaired_(of.repaired.mutable_data_ptr<int64_t>()),
        lora_(checked_kernels().lora) {
    check();
    check_plan();
    shrunk_ = at::empty({slices(), plan_.count(), max_rank()}, of.x.options());
    cut();
  }

  int64_t shrinks() const { return shrinks_.size(); }
  int64_t expands() const { return expands_.size(); }

  void shrink(int64_t i) const {
    const Piece& p = shrinks_[i];
    lora_.shrink(read(of_.x), of_.x.stride(0), plan_.rows() + p.first_row(), p.rows, a_of(p),
                 width(), p.ranks, of_.scale, shrunk_at(p) + p.rank, max_rank());
  }

  // After all of shrink.
  void expand(int64_t i) const {
    const Piece& p = expands_[i];
    const int64_t count = lora_.expand(
        {write(of_.y) + starts_[p.slice], of_.y.stride(0), plan_.rows() + p.first_row(), p.rows,
         shrunk_at(p), max_rank(), b_of(p), max_rank(), p.segment[1], float(of_.bound), of_.add},
        p.column, p.column + p.columns);
    if (count) std::atomic_ref<int64_t>(repaired_[p.segment[0]]).fetch_add(count);
  }

 private:
  struct Piece {
    const int32_t* segment;
    int slice, row, rows, rank, ranks;
    int64_t column, columns;
    int first_row() const { return segment[2] + row; }
  };
  static constexpr int kRows = 96, kRanks = 16, kColumns = 512;  // of one piece

  int slices() const { return of_.a.size(); }
  int64_t slots() const { return of_.a[0].size(0); }
  int64_t max_rank() const { return of_.a[0].size(2); }
  int64_t width() const { return of_.a[0].size(3); }

  const bf16* a_of(const Piece& p) const {
    return read(of_.a[p.slice]) + (p.segment[0] * max_rank() + p.rank) * width();
  }
  const bf16* b_of(const Piece& p) const {
    return read(of_.b[p.slice]) + p.segment[0] * of_.b[p.slice].size(2) * max_rank();
  }
  bf16* shrunk_at(const Piece& p) const {
    return write(shrunk_) + (p.slice * shrunk_.size(1) + p.first_row()) * max_rank();
  }

  void check() {
    check_rows(of_.y, "y");
    check_rows(of_.x, "x");
    TORCH_CHECK(of_.a.size() == of_.b.size() && !of_.a.empty());
    starts_.push_back(0);
    for (int i = 0; i < slices(); ++i) {
      const Tensor &a = of_.a[i], &b = of_.b[i];
      check_slots(a, "a");
      check_slots(b, "b");
      TORCH_CHECK(a.size(2) == max_rank() && b.size(3) == max_rank() && a.size(3) == width());
      TORCH_CHECK(a.size(0) == slots() && b.size(0) == slots());
      starts_.push_back(starts_.back() + b.size(2));
    }
    TORCH_CHECK(of_.x.size(1) == width() && max_rank() % kRankStep == 0);
    TORCH_CHECK(starts_.back() <= of_.y.size(1), "B has more columns than y");
    TORCH_CHECK(of_.repaired.is_contiguous() && of_.repaired.numel() >= slots());
  }

  void check_plan() const {
    for (int i = 0; i < plan_.segments(); ++i) {
      const int32_t slot = plan_.segment(i)[0], rank = plan_.segment(i)[1];
      TORCH_CHECK(0 <= slot && slot < slots(), "no such slot");
      TORCH_CHECK(0 <= rank && rank <= max_rank() && rank % kRankStep == 0, "no such rank");
    }
    if (plan_.count() == 0) return;
    const auto [least, most] = std::minmax_element(plan_.rows(), plan_.rows() + plan_.count());
    TORCH_CHECK(0 <= *least && *most < std::min(of_.x.size(0), of_.y.size(0)),
                "fewer rows than the batch has tokens");
  }

  // In the order of the batch, which is how x and y were written: first rows by the first thread.
  void cut() {
    for (int i = 0; i < plan_.segments(); ++i) {
      const int32_t* segment = plan_.segment(i);
      for (int row = 0, count = segment[3]; row < count; row += kRows)
        for (int slice = 0; slice < slices(); ++slice) {
          const int rows = std::min(kRows, count - row);
          for (int rank = 0; rank < segment[1]; rank += kRanks)
            shrinks_.push_back(
                {segment, slice, row, rows, rank, std::min(kRanks, segment[1] - rank), 0, 0});
          const int64_t columns = of_.b[slice].size(2);
          for (int64_t column = 0; column < columns; column += kColumns)
            expands_.push_back({segment, slice, row, rows, 0, 0, column,
                                std::min<int64_t>(kColumns, columns - column)});
        }
    }
    const auto by_rows = [&](const Piece& p) { return plan_.rows()[p.first_row()]; };
    std::ranges::stable_sort(shrinks_, {}, by_rows);
    std::ranges::stable_sort(expands_, {}, by_rows);
  }

  const LoraOperands of_;
  const Plan plan_;
  int64_t* const repaired_;
  const LoraKernels& lora_;
  Tensor shrunk_;  // (slices, rows, ranks)
  std::vector<int64_t> starts_;
  std::vector<Piece> shrinks_, expands_;
};

}  // namespace lorry

// Work that PyTorch's threads share.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace lorry {

// Pieces that do not depend on one another. Every thread has its own stretch of them, and helps
// others when it is done: an equal share each would wait for the thread whose core a neighbour uses,
// and pieces handed out in turn would make a core fetch what another one has in its cache.
class Share {
 public:
  Share(int64_t pieces, int64_t threads) : pieces_(pieces), next_(threads) {
    for (int64_t t = 0; t < threads; ++t) next_[t] = start_of(t);
  }

  // The share of thread `self`; returns while others may still work on theirs.
  template <typename Work>
  void take(int64_t self, const Work& work) {
    const int64_t threads = next_.size();
    int64_t taken = 0;
    try {
      for (int64_t i = 0; i < threads; ++i) {
        const int64_t t = (self + i) % threads, end = start_of(t + 1);
        for (int64_t piece = next_[t]++; piece < end; piece = next_[t]++, ++taken) work(piece);
      }
    } catch (...) {  // out of memory: the operator fails as a whole, so no thread may wait for this
      done_.fetch_add(pieces_);
      throw;
    }
    done_.fetch_add(taken, std::memory_order_release);
  }

  // Until all pieces are done. Every taken piece has a thread working on it, so this ends.
  void wait() const {
    for (int tries = 0; done_.load(std::memory_order_acquire) < pieces_; ++tries)
      if (tries < kSpins) __builtin_ia32_pause();
      else std::this_thread::yield();
  }

 private:
  static constexpr int kSpins = 1000;
  int64_t start_of(int64_t thread) const { return thread * pieces_ / (int64_t)next_.size(); }

  const int64_t pieces_;
  std::vector<std::atomic<int64_t>> next_;
  std::atomic<int64_t> done_ = 0;
};

template <typename Work>
struct Phase {
  int64_t pieces;
  Work work;  // is called with the number of a piece
};

// Each phase begins when all of the one before is done. To wake the threads once for all of them is
// quicker than once for each.
template <typename... Works>
void share(const Phase<Works>&... phases) {
  const int64_t threads =
      std::min<int64_t>(at::get_num_threads(), std::max({int64_t(0), phases.pieces...}));
  if (threads == 0) return;
  Share shares[] = {Share(phases.pieces, threads)...};
  at::parallel_for(0, threads, 1, [&](int64_t self, int64_t) {
    Share* now = shares;
    const auto run = [&](const auto& work) {
      if (now > shares) now[-1].wait();
      (now++)->take(self, work);
    };
    (run(phases.work), ...);
  });
}

}  // namespace lorry

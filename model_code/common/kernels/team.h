// Threads that go through the same phases, each phase a number of tasks.
//
// A phase is over when its tasks are done, whoever did them: a thread that the system interrupts
// between two tasks holds nobody up, and finds its phases done when it comes back.

#pragma once

#include <sched.h>

#include <atomic>
#include <cstdint>
#include <vector>

namespace isomorph {

struct alignas(64) Phase {
  std::atomic<int64_t> next{0}, done{0};
};
using Phases = std::vector<Phase>;

// One thread's way through the phases.
class Member {
 public:
  explicit Member(Phases& phases) : phases_(phases) {}

  // All threads call it with the same tasks, in the same order. `count` must not change later: a
  // thread that comes late asks again.
  template <typename Task>
  void run(int64_t count, Task task) {
    Phase& phase = phases_.at(at_++);
    for (int64_t i; (i = phase.next.fetch_add(1, std::memory_order_relaxed)) < count;) {
      task(i);
      phase.done.fetch_add(1, std::memory_order_release);
    }
    for (int turns = 0; phase.done.load(std::memory_order_acquire) < count; ++turns) {
      if (turns < PATIENCE) {
        pause();
      } else {
        sched_yield();  // another program may need this CPU to get on with ours
      }
    }
  }

 private:
  static constexpr int PATIENCE = 2000;

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  Phases& phases_;
  size_t at_ = 0;
};

}  // namespace isomorph

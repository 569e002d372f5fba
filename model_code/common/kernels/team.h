// Threads that go through the same phases, each phase a number of tasks.
//
// A phase is over when its tasks are done, whoever did them: a thread that the system interrupts
// between two tasks holds nobody up, and finds its phases done when it comes back. Nor does anybody
// wait for a thread to wake up, which takes longer than a small matrix: who comes late helps with
// what is left. OpenMP's regions and barriers wait for all.

#pragma once

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace isomorph {

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Waits for what another thread is about to have done.
template <typename Done>
inline void wait(Done done) {
  constexpr int PATIENCE = 2000;
  for (int turns = 0; !done(); ++turns) {
    if (turns < PATIENCE) {
      pause();
    } else {
      sched_yield();  // another program may need this CPU to get on with ours
    }
  }
}

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
    wait([&] { return phase.done.load(std::memory_order_acquire) >= count; });
  }

 private:
  Phases& phases_;
  size_t at_ = 0;
};

// Threads that wait for work: awake for a moment, since the next call mostly follows soon, and then
// asleep. They are never joined; a process may end while they sleep.
class Pool {
 public:
  static Pool& shared() {
    static std::once_flag once;
    std::call_once(once, [] {
      current() = new Pool;
      pthread_atfork(nullptr, nullptr, [] { current() = new Pool; });  // threads stay behind
    });
    return *current();
  }

  // Calls `body` in this thread, and in up to `threads` - 1 others that are free to; returns when
  // none is in it any more. Two callers at once: the second one works alone.
  template <typename Body>
  void run(int threads, Body body) {
    std::unique_lock<std::mutex> mine(busy_, std::try_to_lock);
    if (threads <= 1 || !mine) return body();
    call_ = [](void* data) { (*static_cast<Body*>(data))(); };
    data_ = &body;
    wanted_ = threads - 1;
    grow();
    state_.store(((state_.load() >> GENERATION) + 1) << GENERATION | OPEN);
    if (asleep_.load() > 0) {
      std::lock_guard<std::mutex> lock(sleep_);
      wake_.notify_all();
    }
    body();
    state_.fetch_and(~OPEN);
    wait([&] { return !(state_.load(std::memory_order_acquire) & INSIDE); });
  }

 private:
  // One number says which work it is, whether one may still join, and how many are in it.
  static constexpr uint64_t INSIDE = 0xFFFF, OPEN = 0x10000;
  static constexpr int GENERATION = 32;
  static constexpr int PATIENCE = 4000;  // about 0.1 ms

  static Pool*& current() {
    static Pool* pool = nullptr;
    return pool;
  }

  void grow() {
    try {
      for (; helpers_ < wanted_; ++helpers_) std::thread(&Pool::help, this, helpers_).detach();
    } catch (const std::system_error&) {
      // The system gives no more threads: those that are there do the work.
    }
  }

  void help(int index) {
    for (uint64_t seen = 0;;) {
      uint64_t state = next(seen);
      seen = state >> GENERATION;
      while (state & OPEN && state >> GENERATION == seen) {
        if (!state_.compare_exchange_weak(state, state + 1)) continue;
        if (index < wanted_) call_(data_);
        state_.fetch_sub(1, std::memory_order_release);
        break;
      }
    }
  }

  // Waits for other work than the last one that this thread has seen.
  uint64_t next(uint64_t seen) {
    const auto is_new = [&] { return state_.load() >> GENERATION != seen; };
    for (int turns = 0; turns < PATIENCE; ++turns) {
      if (is_new()) return state_.load();
      pause();
    }
    std::unique_lock<std::mutex> lock(sleep_);
    ++asleep_;
    wake_.wait(lock, is_new);
    --asleep_;
    return state_.load();
  }

  std::mutex busy_, sleep_;
  std::condition_variable wake_;
  std::atomic<uint64_t> state_{0};
  std::atomic<int> asleep_{0};
  void (*call_)(void*) = nullptr;
  void* data_ = nullptr;
  int wanted_ = 0, helpers_ = 0;
};

// Work of so many phases, each as `work` says it to a Member.
template <typename Work>
inline void in_phases(int threads, size_t count, Work work) {
  Phases phases(count);
  Pool::shared().run(threads, [&] {
    Member team(phases);
    work(team);
  });
}

}  // namespace isomorph

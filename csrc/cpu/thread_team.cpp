#include "cpu/thread_team.hpp"

#include <algorithm>
#include <chrono>
#include <system_error>
#include <utility>

#include "pysubmod/error.hpp"

namespace pysubmod::cpu {
namespace {

// A worker looks this often for the next job before it sleeps: long enough to bridge the serial part of one pick.
constexpr int kSpins = 4000;

std::int64_t now_ms() {
    using namespace std::chrono;
    return duration_cast<milliseconds>(steady_clock::now().time_since_epoch()).count();
}

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

ThreadTeam::ThreadTeam(int n_threads, double bytes_worth_threads, Monitor& monitor)
    : n_threads_(n_threads),
      bytes_worth_threads_(bytes_worth_threads),
      monitor_(monitor),
      shares_(static_cast<std::size_t>(std::max(n_threads, 1))) {
    if (n_threads < 1) throw InvalidArgument("n_threads: must be at least 1");
}

ThreadTeam::~ThreadTeam() {
    stop_.store(true);
    round_.fetch_add(1);
    round_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void ThreadTeam::start() {
    workers_.reserve(static_cast<std::size_t>(n_threads_ - 1));
    try {
        while (static_cast<int>(workers_.size()) < n_threads_ - 1)
            workers_.emplace_back(&ThreadTeam::work, this, static_cast<int>(workers_.size()) + 1);
    } catch (const std::system_error&) {
        // The system gives no more threads: the ones at hand do all the work, with the same result.
        n_threads_ = started();
    }
}

void ThreadTeam::poll() {
    const std::int64_t now = now_ms();
    if (now < next_poll_) return;
    next_poll_ = now + 20;
    if (monitor_.interrupted()) throw Interrupted();
}

namespace {

constexpr std::uint64_t pack(Index first, Index end) {
    return static_cast<std::uint64_t>(first) << 32 | static_cast<std::uint64_t>(end);
}

// Claims a task of a range: change(first, end) narrows it and returns the one it cut off.
template <class Change>
Index claim(std::atomic<std::uint64_t>& range, Change change) {
    std::uint64_t old = range.load(std::memory_order_acquire);
    for (;;) {
        auto first = static_cast<Index>(old >> 32), end = static_cast<Index>(old & 0xffffffffu);
        if (first >= end) return -1;
        const Index task = change(first, end);
        if (range.compare_exchange_weak(old, pack(first, end), std::memory_order_acq_rel, std::memory_order_acquire))
            return task;
    }
}

}  // namespace

Index ThreadTeam::Share::claim_first() {
    return claim(range, [](Index& first, Index&) { return first++; });
}
Index ThreadTeam::Share::claim_last() {
    return claim(range, [](Index&, Index& end) { return --end; });
}

void ThreadTeam::take_tasks(int worker) {
    const std::size_t own = static_cast<std::size_t>(worker);
    for (Index task = shares_[own].claim_first(); task >= 0; task = shares_[own].claim_first()) do_task(task, worker);
    for (std::size_t s = 1; s < shares_.size(); ++s) {
        Share& other = shares_[(own + s) % shares_.size()];
        for (Index task = other.claim_last(); task >= 0; task = other.claim_last()) do_task(task, worker);
    }
}

void ThreadTeam::do_task(Index task, int worker) {
    try {
        if (!failed_.load(std::memory_order_relaxed)) {  // after a failure the rest is passed over
            if (worker == 0) poll();
            (*job_)(task, worker);
        }
    } catch (...) {
        const std::lock_guard lock(error_mutex_);
        if (!error_) error_ = std::current_exception();
        failed_.store(true, std::memory_order_relaxed);
    }
    finish_task();
}

void ThreadTeam::finish_task() {
    if (undone_.fetch_sub(1, std::memory_order_acq_rel) == 1) undone_.notify_one();
}

void ThreadTeam::work(int worker) {
    std::uint32_t seen = 0;
    for (;;) {
        for (int spin = 0; spin < kSpins && round_.load(std::memory_order_acquire) == seen; ++spin) relax();
        round_.wait(seen, std::memory_order_acquire);
        seen = round_.load(std::memory_order_acquire);
        if (stop_.load()) return;
        take_tasks(worker);
    }
}

void ThreadTeam::run(Index n_tasks, double bytes, const std::function<void(Index, int)>& job) {
    if (n_tasks == 0) return;
    const bool alone = n_threads_ == 1 || n_tasks < 2 || bytes < bytes_worth_threads_;
    if (!alone && workers_.empty()) start();
    job_ = &job;
    undone_.store(static_cast<int>(n_tasks), std::memory_order_relaxed);
    const auto n_shares = static_cast<Index>(shares_.size());
    for (Index s = 0; s < n_shares; ++s)
        shares_[static_cast<std::size_t>(s)].range.store(pack(n_tasks * s / n_shares, n_tasks * (s + 1) / n_shares),
                                                         std::memory_order_release);
    if (!alone) {
        round_.fetch_add(1, std::memory_order_release);
        round_.notify_all();
    }
    take_tasks(0);
    for (int spin = 0; spin < kSpins && undone_.load(std::memory_order_acquire) > 0; ++spin) relax();
    for (int left = undone_.load(std::memory_order_acquire); left > 0; left = undone_.load(std::memory_order_acquire))
        undone_.wait(left, std::memory_order_acquire);
    if (error_) {
        failed_.store(false, std::memory_order_relaxed);
        std::rethrow_exception(std::exchange(error_, nullptr));
    }
}

}  // namespace pysubmod::cpu

// A few threads that live for one solve. Nothing outlasts it: a fork between solves is safe, and no other library's
// thread count is touched.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "pysubmod/types.hpp"

namespace pysubmod::cpu {

class ThreadTeam {
  public:
    // Threads start at the first job that is worth them. `monitor` is polled from the calling thread during long jobs.
    // A job that reads fewer bytes than `bytes_worth_threads` wakes no worker.
    ThreadTeam(int n_threads, double bytes_worth_threads, Monitor& monitor);
    ~ThreadTeam();
    ThreadTeam(const ThreadTeam&) = delete;
    ThreadTeam& operator=(const ThreadTeam&) = delete;

    int size() const { return n_threads_; }
    int started() const { return static_cast<int>(workers_.size()) + 1; }

    // Calls job(task, worker) for every task in 0 .. n_tasks - 1, each exactly once; 0 <= worker < size(). Each worker
    // goes up through a share of its own, the same in every run of as many tasks, so that it finds in its caches what
    // it read before; then it takes from the ends of the others'. `bytes` is about how much memory the whole job reads:
    // for small ones no worker is woken. An exception in a task is rethrown here when all threads have stopped;
    // Interrupted if the monitor says so.
    void run(Index n_tasks, double bytes, const std::function<void(Index, int)>& job);

    // Throws Interrupted if the monitor says so; asks it at most every 20 ms.
    void poll();

  private:
    void start();
    void work(int worker);
    void take_tasks(int worker);
    void do_task(Index task, int worker);
    void finish_task();

    int n_threads_;
    double bytes_worth_threads_;
    Monitor& monitor_;
    std::int64_t next_poll_ = 0;
    std::vector<std::thread> workers_;

    // Tasks that nobody has claimed: the first in the upper half, one past the last in the lower.
    struct alignas(64) Share {
        std::atomic<std::uint64_t> range{0};
        Index claim_first();  // -1: none is left
        Index claim_last();
    };

    // The job at hand. Tasks are claimed one by one; whoever claims one may read `job_`, which stands until every
    // claimed task is done. So nobody waits for a worker that the system has not woken yet: only for tasks.
    const std::function<void(Index, int)>* job_ = nullptr;
    std::vector<Share> shares_;
    std::atomic<int> undone_{0};
    std::atomic<std::uint32_t> round_{0};  // goes up with every job: what sleeping workers watch
    std::atomic<bool> failed_{false};
    std::atomic<bool> stop_{false};
    std::mutex error_mutex_;
    std::exception_ptr error_;
};

}  // namespace pysubmod::cpu

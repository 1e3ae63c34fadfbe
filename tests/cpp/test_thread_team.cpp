#include "cpu/thread_team.hpp"

#include <chrono>
#include <stdexcept>

#include "check.hpp"
#include "pysubmod/error.hpp"

using namespace pysubmod;
using cpu::ThreadTeam;

namespace {

constexpr double kMuch = 1e9;  // bytes: worth every thread

// Says "interrupted" once `stop` is set, and notes who asked.
class Switch : public Monitor {
  public:
    bool interrupted() override {
        ++asked;
        if (std::this_thread::get_id() != home_) CHECK(false);
        return stop;
    }
    std::atomic<bool> stop{false};
    std::atomic<int> asked{0};

  private:
    std::thread::id home_ = std::this_thread::get_id();
};

void sleep_ms(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

// Runs one job and checks that each task came exactly once.
void check_job(ThreadTeam& team, Index n_tasks, double bytes) {
    std::vector<std::atomic<int>> count(static_cast<std::size_t>(n_tasks));
    std::atomic<bool> known_worker{true};
    team.run(n_tasks, bytes, [&](Index task, int worker) {
        ++count[static_cast<std::size_t>(task)];
        if (worker < 0 || worker >= team.size()) known_worker = false;
    });
    for (const auto& c : count) CHECK(c == 1);
    CHECK(known_worker);
}

}  // namespace

TEST_CASE(each_task_exactly_once) {
    for (const int n_threads : {1, 2, 7}) {
        Monitor monitor;
        ThreadTeam team(n_threads, 0.0, monitor);
        CHECK(team.size() == n_threads);
        CHECK(team.started() == 1);
        for (const Index n_tasks : {0, 1, 2, 3, 7, 64, 1000})
            for (const double bytes : {0.0, kMuch}) check_job(team, n_tasks, bytes);
        CHECK(team.started() == n_threads);
    }
}

TEST_CASE(small_jobs_stay_on_the_calling_thread) {
    Monitor monitor;
    ThreadTeam team(3, 1e6, monitor);
    const auto home = std::this_thread::get_id();
    team.run(100, 1000.0, [&](Index, int worker) { CHECK(worker == 0 && std::this_thread::get_id() == home); });
    team.run(1, kMuch, [&](Index, int worker) { CHECK(worker == 0 && std::this_thread::get_id() == home); });
    CHECK(team.started() == 1);
}

TEST_CASE(one_worker_one_thread) {  // so that a worker's own memory needs no lock
    Monitor monitor;
    ThreadTeam team(4, 0.0, monitor);
    std::vector<long> sums(4, 0);  // unguarded: the thread sanitizer watches
    for (int round = 0; round < 20; ++round)
        team.run(100, kMuch, [&](Index task, int worker) { sums[static_cast<std::size_t>(worker)] += task; });
    long total = 0;
    for (const long sum : sums) total += sum;
    CHECK(total == 20 * 4950);
}

TEST_CASE(a_team_is_reused_thousands_of_times) {
    for (const int n_threads : {1, 2, 7}) {
        Monitor monitor;
        ThreadTeam team(n_threads, 0.0, monitor);
        std::vector<long> values(8, 0);  // every job reads what the one before wrote, on whatever thread
        for (int round = 0; round < 3000; ++round)
            team.run(8, round % 3 ? kMuch : 0.0,
                     [&](Index task, int) { values[static_cast<std::size_t>(task)] += task; });
        for (long task = 0; task < 8; ++task) CHECK(values[static_cast<std::size_t>(task)] == 3000 * task);
    }
}

TEST_CASE(workers_that_fell_asleep_wake_up) {
    Monitor monitor;
    ThreadTeam team(7, 0.0, monitor);
    for (int round = 0; round < 5; ++round) {
        check_job(team, 50, kMuch);
        sleep_ms(5);
    }
}

TEST_CASE(a_caller_that_fell_asleep_wakes_up) {
    Monitor monitor;
    ThreadTeam team(2, 0.0, monitor);
    for (int round = 0; round < 5; ++round) {
        std::atomic<int> done{0};
        team.run(2, kMuch, [&](Index, int worker) {
            if (worker == 1) sleep_ms(5);
            ++done;
        });
        CHECK(done == 2);
    }
}

TEST_CASE(exceptions_reach_the_caller) {
    for (const int n_threads : {1, 2, 7}) {
        Monitor monitor;
        ThreadTeam team(n_threads, 0.0, monitor);
        for (int round = 0; round < 50; ++round) {
            const Index bad = round % 20;
            std::atomic<int> after{0};
            bool thrown = false;
            try {
                team.run(20, kMuch, [&](Index task, int) {
                    if (task == bad) throw std::out_of_range("task " + std::to_string(task));
                    ++after;
                });
            } catch (const std::out_of_range& error) {
                thrown = true;
                CHECK(std::string(error.what()) == "task " + std::to_string(bad));
            }
            CHECK(thrown);
            CHECK(after < 20);
            check_job(team, 20, kMuch);  // nothing is left over
        }
    }
}

TEST_CASE(of_many_exceptions_one_arrives) {
    Monitor monitor;
    ThreadTeam team(7, 0.0, monitor);
    for (int round = 0; round < 50; ++round) {
        CHECK_THROWS(std::runtime_error, "task",
                     team.run(50, kMuch, [](Index, int) { throw std::runtime_error("task"); }));
        check_job(team, 10, kMuch);
    }
}

TEST_CASE(a_monitor_interrupts) {
    for (const int n_threads : {1, 2, 7}) {
        Switch monitor;
        ThreadTeam team(n_threads, 0.0, monitor);
        check_job(team, 10, kMuch);
        CHECK(monitor.asked <= 1);  // not before every task
        std::atomic<int> ran{0};
        CHECK_THROWS(Interrupted, "interrupted", team.run(10000, kMuch, [&](Index, int) {
            if (++ran == 20) monitor.stop = true;
            sleep_ms(1);
        }));
        CHECK(ran >= 20 && ran < 10000);
        monitor.stop = false;
        sleep_ms(25);
        check_job(team, 10, kMuch);  // the team is whole
        monitor.stop = true;
        sleep_ms(25);
        CHECK_THROWS(Interrupted, "interrupted", team.poll());
    }
}

TEST_CASE(a_monitor_interrupts_small_jobs) {
    Switch monitor;
    monitor.stop = true;
    ThreadTeam team(7, 1e6, monitor);
    CHECK_THROWS(Interrupted, "interrupted", team.run(10, 0.0, [](Index, int) { CHECK(false); }));
    CHECK(monitor.asked == 1);
}

TEST_CASE(what_a_monitor_throws_reaches_the_caller) {
    class Thrower : public Monitor {
        bool interrupted() override { throw std::domain_error("from the monitor"); }
    } monitor;
    ThreadTeam team(2, 0.0, monitor);
    CHECK_THROWS(std::domain_error, "from the monitor", team.run(10, 0.0, [](Index, int) {}));
}

TEST_CASE(teams_side_by_side) {
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 4; ++caller)
        callers.emplace_back([] {
            Monitor monitor;
            ThreadTeam team(3, 0.0, monitor);
            for (int round = 0; round < 100; ++round) check_job(team, 20, kMuch);
        });
    for (std::thread& caller : callers) caller.join();
}

TEST_CASE(teams_come_and_go) {
    for (int round = 0; round < 100; ++round) {
        Monitor monitor;
        ThreadTeam unused(5, 0.0, monitor), used(3, 0.0, monitor);
        check_job(used, 3, kMuch);
    }
}

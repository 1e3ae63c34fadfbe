// The test harness: cases register themselves, checks count failures, main runs every case and reports.
// An argument runs only the cases whose names contain it.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

namespace check {

struct Case {
    const char* name;
    void (*run)();
};

inline std::vector<Case>& cases() {
    static std::vector<Case> all;
    return all;
}

struct Registered {
    Registered(const char* name, void (*run)()) { cases().push_back({name, run}); }
};

inline std::atomic<int> failures{0};  // checks may fail in any thread

inline void fail(const char* file, int line, const std::string& what) {
    constexpr int most = 30;  // a broken kernel fails thousands of times: print the first few
    const int count = ++failures;
    if (count <= most) std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
    if (count == most) std::fprintf(stderr, "... further failures are counted, not printed\n");
}

inline std::string text(long double x) {
    char buffer[64];
    std::snprintf(buffer, sizeof buffer, "%.20Lg", x);
    return buffer;
}

}  // namespace check

#define TEST_CASE(name)                                             \
    static void name();                                             \
    static const check::Registered name##_registered{#name, &name}; \
    static void name()

#define CHECK(...)                                                                      \
    do {                                                                                \
        if (!(__VA_ARGS__)) check::fail(__FILE__, __LINE__, "not true: " #__VA_ARGS__); \
    } while (false)

// |value - expected| <= tolerance; not if either is NaN.
#define CHECK_CLOSE(value, expected, tolerance)                                                                 \
    do {                                                                                                        \
        const long double check_v = (value), check_e = (expected), check_t = (tolerance);                       \
        if (!(std::fabs(check_v - check_e) <= check_t))                                                         \
            check::fail(__FILE__, __LINE__,                                                                     \
                        #value " = " + check::text(check_v) + ", not " #expected " = " + check::text(check_e) + \
                            " within " + check::text(check_t));                                                 \
    } while (false)

// The expression throws this exception, or one derived from it, and its message contains `part`.
#define CHECK_THROWS(exception, part, ...)                                                                           \
    do {                                                                                                             \
        try {                                                                                                        \
            static_cast<void>(__VA_ARGS__);                                                                          \
            check::fail(__FILE__, __LINE__, "nothing thrown by " #__VA_ARGS__);                                      \
        } catch (const exception& check_error) {                                                                     \
            if (!std::strstr(check_error.what(), part))                                                              \
                check::fail(__FILE__, __LINE__, std::string("'") + check_error.what() + "' does not say " + (part)); \
        } catch (...) {                                                                                              \
            check::fail(__FILE__, __LINE__, "not " #exception ": thrown by " #__VA_ARGS__);                          \
        }                                                                                                            \
    } while (false)

int main(int argc, char** argv) {
    int ran = 0;
    for (const check::Case& test : check::cases()) {
        if (argc > 1 && !std::strstr(test.name, argv[1])) continue;
        const int before = check::failures;
        try {
            test.run();
        } catch (const std::exception& error) {
            check::fail(test.name, 0, std::string("threw ") + error.what());
        } catch (...) {
            check::fail(test.name, 0, "threw something that is no std::exception");
        }
        ++ran;
        std::printf("%s %s\n", check::failures == before ? "ok  " : "FAIL", test.name);
    }
    std::printf("%d cases, %d failed checks\n", ran, check::failures.load());
    return ran > 0 && check::failures == 0 ? 0 : 1;
}

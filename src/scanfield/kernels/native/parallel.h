// Spreads items of work over threads: torch's OpenMP team where Python handed it over, else threads of our own.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

// What Python may call.
#define SCANFIELD_API extern "C" __attribute__((visibility("default")))

namespace scanfield {

using Body = void (*)(void*);
extern void (*gomp_parallel)(Body, void*, unsigned, unsigned);

// Runs work(thread) on `threads` threads, thread = 0 .. threads - 1.
template <class Work>
void on_threads(int threads, Work&& work) {
    if (threads <= 1) {
        work(0);
        return;
    }
    if (gomp_parallel != nullptr) {
        // The team may be smaller than asked for: `next` hands out every thread number exactly once.
        struct Shared {
            Work& work;
            std::atomic<int> next;
            int threads;
        } shared{work, {0}, threads};
        gomp_parallel(
            [](void* data) {
                auto& s = *static_cast<Shared*>(data);
                for (int t = s.next++; t < s.threads; t = s.next++) s.work(t);
            },
            &shared, static_cast<unsigned>(threads), 0);
        return;
    }
    std::vector<std::thread> team;
    for (int t = 1; t < threads; ++t) team.emplace_back([&work, t] { work(t); });
    work(0);
    for (auto& member : team) member.join();
}

// Runs work(item, thread) for item = 0 .. items - 1, handed out one by one in rising order.
template <class Work>
void for_items(int64_t items, int threads, Work&& work) {
    if (threads > items) threads = static_cast<int>(items);
    std::atomic<int64_t> next{0};
    on_threads(threads, [&](int thread) {
        for (int64_t item = next++; item < items; item = next++) work(item, thread);
    });
}

}  // namespace scanfield

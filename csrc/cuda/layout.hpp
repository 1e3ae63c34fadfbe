// Many arrays in one piece of memory, so that one allocation, or one copy, serves all.
#pragma once

#include <cstddef>
#include <cstring>
#include <span>
#include <vector>

namespace pysubmod::cuda {

// Arrays are announced first; `place` then sets the pointers to them. The pointers must stay where they are until then.
class Layout {
  public:
    template <class T>
    void add(T*& pointer, std::size_t count) {
        bytes_ = (bytes_ + kAlign - 1) / kAlign * kAlign;
        entries_.push_back(
            {[](void* to, std::byte* at) { *static_cast<T**>(to) = reinterpret_cast<T*>(at); }, &pointer, bytes_});
        bytes_ += count * sizeof(T);
    }
    std::size_t bytes() const { return bytes_; }
    void place(std::byte* base) const {
        for (const Entry& entry : entries_) entry.set(entry.pointer, base + entry.offset);
    }

  private:
    static constexpr std::size_t kAlign = 64;
    struct Entry {
        void (*set)(void*, std::byte*);
        void* pointer;
        std::size_t offset;
    };
    std::vector<Entry> entries_;
    std::size_t bytes_ = 0;
};

// Numbers on their way to a device, in one copy: `add` announces an array and takes its numbers.
class Upload {
  public:
    template <class T>
    void add(const T*& pointer, std::span<const T> values) {
        layout_.add(pointer, values.size());
        const std::size_t at = layout_.bytes() - values.size_bytes();
        staging_.resize(layout_.bytes());
        if (!values.empty()) std::memcpy(staging_.data() + at, values.data(), values.size_bytes());
    }
    template <class Device>
    void send(Device& device) {
        std::byte* base = device.template allocate<std::byte>(staging_.size());
        layout_.place(base);
        device.upload(base, staging_.data(), staging_.size());
    }

  private:
    Layout layout_;
    std::vector<std::byte> staging_;
};

}  // namespace pysubmod::cuda

#include "baton.hpp"

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "fibers.hpp"

namespace fibers {
namespace {

struct Waiter {
  std::condition_variable wake;
  bool turn = false;
};

std::mutex guard;
std::vector<Waiter*> queue;
bool held = false;
uint64_t idle = 0;  // passes with nobody to pass it to, in a row
std::mt19937_64 lot;
uint64_t seed = 0;

void wait_for_turn(std::unique_lock<std::mutex>& lock) {
  Waiter self;
  queue.push_back(&self);
  self.wake.wait(lock, [&] { return self.turn; });
}

void hand_on() {
  held = !queue.empty();
  if (!held) return;
  if (seed != order()) lot.seed(seed = order());
  const size_t which = order() == 0 ? 0 : size_t(lot() % queue.size());
  Waiter* const next = queue[which];
  queue.erase(queue.begin() + long(which));
  next->turn = true;
  next->wake.notify_one();
}

}  // namespace

Baton::Baton() {
  std::unique_lock<std::mutex> lock(guard);
  if (held)
    wait_for_turn(lock);
  else
    held = true;
}

Baton::~Baton() {
  const std::lock_guard<std::mutex> lock(guard);
  hand_on();
}

void Baton::pass() {
  std::unique_lock<std::mutex> lock(guard);
  if (!queue.empty()) {
    idle = 0;
    Waiter self;  // behind those that wait now
    hand_on();
    queue.push_back(&self);
    self.wake.wait(lock, [&] { return self.turn; });
    return;
  }
  const bool rest = ++idle > 100;
  lock.unlock();
  if (rest)
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  else
    std::this_thread::yield();
}

}  // namespace fibers

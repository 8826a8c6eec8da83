// What the tests share: counting, randomness, and being refused.
#pragma once

#include <functional>
#include <random>
#include <string>

namespace check {

using Random = std::mt19937;

void expect(bool holds, const std::string& what);
void refused(const std::string& what, const std::function<void()>& act);
int64_t draw(Random& random, int64_t low, int64_t high);

}  // namespace check

void passes_tests(check::Random& random, int rounds);
void session_tests(check::Random& random, int rounds);

//! The executor, timers and async kernel objects of Fuchsia programs.

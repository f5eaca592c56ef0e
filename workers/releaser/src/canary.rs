//! What follows from evidence about a canary. Pure.

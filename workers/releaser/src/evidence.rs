//! What sites report, put together. Pure.

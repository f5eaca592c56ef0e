//! A model's folder as one file.

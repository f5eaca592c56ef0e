//! A release as an OCI image layout.

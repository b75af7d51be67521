//! Manifests, indexes, configs and descriptors (OCI image specification 1.1, Docker schema 2).

//! The OCI runtime: namespaces, cgroups, mounts, seccomp, exec.

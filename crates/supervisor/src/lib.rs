//! One container's processes served over frames, on the host and in the guest alike.

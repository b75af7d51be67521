//! Values of the specification, which are cgroup v1's, in the terms of cgroup v2.

use proa_oci::runtime::BlockIo;

use crate::{Error, Result};

/// A value to write, unless it says nothing: 0 is what callers send for "as it is".
pub(super) fn given<T: PartialEq + Default + Copy>(value: Option<T>) -> Option<T> {
    value.filter(|value| *value != T::default())
}

/// Whether somewhere a weight of own tasks against children's is asked for.
pub(super) fn names_leaf_weight(block: &BlockIo) -> bool {
    given(block.leaf_weight).is_some()
        || block.weight_device.iter().any(|device| given(device.leaf_weight).is_some())
}

/// 2..=262144 to 1..=10000, with the default, 1024, at the default, 100. The curve is that of runc 1.3 and crun.
pub(super) fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            // A power that is whole in theory may come out a hair above.
            (10f64.powf(exponent) - 1e-9).ceil() as u64
        }
    }
}

/// 10..=1000 to 1..=10000, as the specification has it.
pub(super) fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight).clamp(10, 1000) - 10) * 9999 / 990
}

/// The specification counts memory and swap together, cgroup v2 swap alone. `limit` is what holds.
pub(super) fn swap_alone(limit: Option<i64>, swap: i64) -> Result<String> {
    match limit {
        _ if swap < 0 => Ok("max".to_owned()),
        Some(limit) if limit >= 0 && swap >= limit => Ok((swap - limit).to_string()),
        _ => Err(Error::invalid(format!("a swap limit of {swap} needs a memory limit that is not above it"))),
    }
}

/// A limit as cgroup v2 writes it.
pub(super) fn or_max(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_converted() {
        let weights = [0, 2, 3, 512, 1024, 2048, 102_400, 262_144, u64::MAX].map(weight_of_shares);
        assert_eq!(weights, [1, 1, 2, 59, 100, 174, 4429, 10_000, 10_000]);
        assert_eq!([10, 100, 500, 1000].map(io_weight), [1, 910, 4950, 10_000]);
        assert_eq!(swap_alone(Some(100), 150).unwrap(), "50");
        assert_eq!(swap_alone(Some(100), 100).unwrap(), "0");
        assert_eq!(swap_alone(Some(100), -1).unwrap(), "max");
        assert!(swap_alone(Some(100), 50).is_err());
        assert!(swap_alone(None, 50).is_err());
        assert_eq!((given(Some(0i64)), given(Some(-1i64)), given::<u64>(None)), (None, Some(-1), None));
    }
}

//! Lists of numbers, as `0-3,7`.

use crate::{Error, Result};

/// Highest number: beyond any machine's CPUs or nodes.
const MAX: usize = 8191;

/// The list as a bit mask, in words of 64 bits.
pub(crate) fn mask(what: &str, list: &str) -> Result<Vec<u64>> {
    let invalid = || Error::invalid(format!("{what}: '{list}' is not a list as 0-3,7"));
    let number = |text: &str| match text.trim().parse::<usize>() {
        Ok(number) if number <= MAX => Ok(number),
        _ => Err(invalid()),
    };
    let mut words = Vec::new();
    for part in list.split(',').filter(|part| !part.trim().is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(invalid());
        }
        words.resize(words.len().max(last / 64 + 1), 0);
        (first..=last).for_each(|number| words[number / 64] |= 1 << (number % 64));
    }
    Ok(words)
}

/// The list as one hexadecimal number.
///
/// # Errors
/// It is not a list of numbers.
pub fn hex_mask(list: &str) -> Result<String> {
    let digits: String = mask("CPUs", list)?.iter().rev().map(|word| format!("{word:016x}")).collect();
    Ok(format!("0x{}", Some(digits.trim_start_matches('0')).filter(|rest| !rest.is_empty()).unwrap_or("0")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_become_masks() {
        assert_eq!(mask("x", "0-3,7").unwrap(), [0x8f]);
        assert_eq!(mask("x", "64, 1").unwrap(), [2, 1]);
        assert!(mask("x", "").unwrap().is_empty());
        assert_eq!(
            ["0,1", "65", ""].map(|list| hex_mask(list).unwrap()),
            ["0x3", "0x20000000000000000", "0x0"]
        );
        for list in ["3-1", "a", "-1", "0-", "99999999", "1-9999"] {
            assert!(mask("x", list).is_err(), "{list}");
        }
    }
}

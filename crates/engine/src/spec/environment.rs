//! Environments: lists of `KEY=value` in which the last word counts.

/// Changes `base` by `changes`: `KEY=value` sets, in place where the key is known; `KEY` alone removes.
pub fn merge(base: &mut Vec<String>, changes: &[String]) {
    for change in changes {
        let key = key(change);
        let known = base.iter().position(|entry| self::key(entry) == key);
        match (known, change.contains('=')) {
            (Some(at), true) => base[at].clone_from(change),
            (Some(at), false) => drop(base.remove(at)),
            (None, true) => base.push(change.clone()),
            (None, false) => {}
        }
    }
}

/// Adds those of `defaults` whose key `env` does not name.
pub(super) fn add_missing(env: &mut Vec<String>, defaults: &[String]) {
    for entry in defaults {
        if !env.iter().any(|known| key(known) == key(entry)) {
            env.push(entry.clone());
        }
    }
}

fn key(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(key, _)| key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[&str]) -> Vec<String> {
        entries.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_last_word_counts() {
        let mut env = list(&["PATH=/bin", "A=1", "B=2"]);
        merge(&mut env, &list(&["A=3", "C=4", "B", "D", "A=x=y"]));
        assert_eq!(env, ["PATH=/bin", "A=x=y", "C=4"]);
    }

    #[test]
    fn defaults_change_nothing() {
        let mut env = list(&["A=1", "B"]);
        add_missing(&mut env, &list(&["A=2", "B=2", "C=2"]));
        assert_eq!(env, ["A=1", "B", "C=2"]);
    }
}

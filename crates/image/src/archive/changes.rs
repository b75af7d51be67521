//! Instructions as in a Dockerfile, applied to an image's config.

use proa_oci::image::{ExecConfig, Healthcheck};

use crate::error::{Error, Result};

/// Applies one instruction.
pub(super) fn apply(change: &str, config: &mut ExecConfig) -> Result<()> {
    let (word, rest) = change.trim().split_once(char::is_whitespace).unwrap_or((change.trim(), ""));
    let rest = rest.trim();
    let wrong = |message: &str| Error::Change { change: change.to_owned(), message: message.to_owned() };
    if rest.is_empty() {
        return Err(wrong("an instruction needs an argument, as in CMD [\"sh\"]"));
    }
    match word.to_ascii_uppercase().as_str() {
        "CMD" => config.cmd = command(rest).map_err(wrong)?,
        "ENTRYPOINT" => {
            config.entrypoint = command(rest).map_err(wrong)?;
        }
        "ENV" => {
            for (key, value) in pairs(rest).map_err(wrong)? {
                let prefix = format!("{key}=");
                config.env.retain(|entry| !entry.starts_with(&prefix));
                config.env.push(format!("{key}={value}"));
            }
        }
        "LABEL" => config.labels.extend(pairs(rest).map_err(wrong)?),
        "EXPOSE" => {
            for port in words(rest).map_err(wrong)? {
                config
                    .exposed_ports
                    .insert(port_of(&port).ok_or_else(|| wrong("a port is NUMBER[/tcp|udp|sctp]"))?);
            }
        }
        "VOLUME" => {
            let dirs = if rest.starts_with('[') { command(rest) } else { words(rest) };
            config.volumes.extend(dirs.map_err(wrong)?);
        }
        "USER" => config.user = rest.to_owned(),
        "WORKDIR" if rest.starts_with('/') => config.working_dir = rest.to_owned(),
        "WORKDIR" => return Err(wrong("the directory must be absolute")),
        "STOPSIGNAL" => config.stop_signal = rest.to_owned(),
        "HEALTHCHECK" => config.healthcheck = Some(healthcheck(rest).map_err(wrong)?),
        _ => {
            return Err(wrong(
                "not one of CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR",
            ));
        }
    }
    Ok(())
}

/// `NONE`, or options and then `CMD` with a JSON list or a line for the image's shell.
fn healthcheck(text: &str) -> Result<Healthcheck, &'static str> {
    let mut check = Healthcheck::default();
    let mut rest = text;
    while let Some(option) = rest.strip_prefix("--") {
        let (option, after) = option.split_once(char::is_whitespace).ok_or("expected CMD or NONE")?;
        let (name, value) = option.split_once('=').ok_or("an option needs a value")?;
        match name {
            "interval" => check.interval = duration_ns(value)?,
            "timeout" => check.timeout = duration_ns(value)?,
            "start-period" => check.start_period = duration_ns(value)?,
            "start-interval" => check.start_interval = duration_ns(value)?,
            "retries" => check.retries = value.parse().map_err(|_| "retries must be a number")?,
            _ => {
                return Err(
                    "an option is --interval, --timeout, --start-period, --start-interval or --retries",
                );
            }
        }
        rest = after.trim_start();
    }
    let (kind, command_line) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    check.test = match (kind.to_ascii_uppercase().as_str(), command_line.trim()) {
        ("NONE", "") => vec!["NONE".into()],
        ("CMD", "") => return Err("CMD needs a command"),
        ("CMD", list) if list.starts_with('[') => [vec!["CMD".into()], command(list)?].concat(),
        ("CMD", line) => vec!["CMD-SHELL".into(), line.into()],
        _ => return Err("expected CMD or NONE"),
    };
    Ok(check)
}

/// Nanoseconds of a duration as `1m30s` or `250ms`.
fn duration_ns(text: &str) -> Result<i64, &'static str> {
    const WRONG: &str = "a duration is as 1m30s or 250ms";
    let mut total = 0i64;
    let mut rest = text;
    loop {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(WRONG)?;
        let number: i64 = rest[..digits].parse().map_err(|_| WRONG)?;
        let unit = &rest[digits..];
        let unit = &unit[..unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len())];
        let nanoseconds = match unit {
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(WRONG),
        };
        total = number.checked_mul(nanoseconds).and_then(|part| total.checked_add(part)).ok_or(WRONG)?;
        rest = &rest[digits + unit.len()..];
        if rest.is_empty() {
            return Ok(total);
        }
    }
}

/// A JSON list, or a line for the shell.
fn command(text: &str) -> Result<Vec<String>, &'static str> {
    if text.starts_with('[') {
        return serde_json::from_str(text).map_err(|_| "not a JSON list of strings");
    }
    Ok(["/bin/sh", "-c", text].map(str::to_owned).to_vec())
}

/// `KEY=value …`, with quotes; or `KEY value`, which is the whole line.
fn pairs(text: &str) -> Result<Vec<(String, String)>, &'static str> {
    let first = text.split(char::is_whitespace).next().unwrap_or_default();
    if !first.contains('=') {
        let (key, value) = text.split_once(char::is_whitespace).ok_or("expected KEY=VALUE")?;
        return Ok(vec![(key.to_owned(), value.trim().to_owned())]);
    }
    let split = |word: String| {
        let (key, value) =
            word.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or("expected KEY=VALUE")?;
        Ok((key.to_owned(), value.to_owned()))
    };
    words(text)?.into_iter().map(split).collect()
}

/// Words as a shell splits them: quotes join, a backslash takes the next character as it is.
fn words(text: &str) -> Result<Vec<String>, &'static str> {
    let (mut words, mut word, mut quote, mut begun) = (Vec::new(), String::new(), None, false);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', Some('"') | None) => word.push(chars.next().ok_or("ends in a backslash")?),
            ('"' | '\'', None) => (quote, begun) = (Some(c), true),
            (c, Some(open)) if c == open => quote = None,
            (c, None) if c.is_whitespace() => {
                if begun || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            (c, _) => word.push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed");
    }
    if begun || !word.is_empty() {
        words.push(word);
    }
    Ok(words)
}

fn port_of(text: &str) -> Option<String> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let range = number.split_once('-').unwrap_or((number, number));
    let fits = range.0.parse::<u16>().is_ok() && range.1.parse::<u16>().is_ok();
    (fits && matches!(protocol, "tcp" | "udp" | "sctp")).then(|| format!("{number}/{protocol}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_do_what_a_dockerfile_does() {
        let mut config = ExecConfig::default();
        for change in [
            "CMD [\"sh\", \"-l\"]",
            "entrypoint echo hi",
            "ENV A=1 B=\"two words\" C=x\\ y",
            "ENV A=2",
            "ENV D all of it",
            "LABEL a.b='c d'",
            "EXPOSE 80 53/udp",
            "VOLUME [\"/data\"]",
            "VOLUME /a /b",
            "USER 1:2",
            "WORKDIR /w",
            "STOPSIGNAL SIGINT",
        ] {
            apply(change, &mut config).unwrap();
        }
        assert_eq!(config.cmd, ["sh", "-l"]);
        assert_eq!(config.entrypoint, ["/bin/sh", "-c", "echo hi"]);
        assert_eq!(config.env, ["B=two words", "C=x y", "A=2", "D=all of it"]);
        assert_eq!(config.labels["a.b"], "c d");
        assert!(config.exposed_ports.iter().eq(["53/udp", "80/tcp"]));
        assert!(config.volumes.iter().eq(["/a", "/b", "/data"]));
        assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("1:2", "/w"));
    }

    #[test]
    fn health_checks() {
        let check = |text: &str| {
            let mut config = ExecConfig::default();
            apply(&format!("HEALTHCHECK {text}"), &mut config).map(|()| config.healthcheck.unwrap())
        };
        assert_eq!(check("none").unwrap().test, ["NONE"]);
        assert_eq!(check("CMD [\"a\", \"b\"]").unwrap().test, ["CMD", "a", "b"]);
        let full =
            check("--interval=1m30s --timeout=250ms --retries=2 --start-period=0s CMD curl x | cat").unwrap();
        assert_eq!(full.test, ["CMD-SHELL", "curl x | cat"]);
        assert_eq!((full.interval, full.timeout, full.retries), (90_000_000_000, 250_000_000, 2));
        for wrong in [
            "a",
            "CMD",
            "NONE x",
            "--interval CMD a",
            "--interval=1 CMD a",
            "--interval= CMD a",
            "--x=1s CMD a",
        ] {
            assert!(check(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn wrong_instructions_say_what_is_wrong() {
        for change in [
            "",
            "CMD",
            "CMD [1]",
            "RUN x",
            "ENV =x",
            "ENV A",
            "ENV A=\"x",
            "EXPOSE x",
            "EXPOSE 1/x",
            "WORKDIR w",
        ] {
            let error = apply(change, &mut ExecConfig::default()).unwrap_err().to_string();
            assert!(error.starts_with("--change"), "{error}");
        }
    }
}

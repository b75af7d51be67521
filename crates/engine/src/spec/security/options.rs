//! What `--security-opt` says.

use crate::error::{Error, Result};
use crate::parse;

/// All `--security-opt` of an instance together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecurityOptions {
    /// System call filter.
    pub seccomp: Filter,
    /// Nothing may raise privileges; absent for the host's default.
    pub no_new_privileges: Option<bool>,
    /// No path of `/proc` and `/sys` is masked or read-only.
    pub open_paths: bool,
    /// AppArmor profile.
    pub apparmor: AppArmor,
    /// SELinux label.
    pub label: Label,
    /// No Landlock domain.
    pub without_landlock: bool,
}

/// Which system call filter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Filter {
    /// Our own.
    #[default]
    Builtin,
    /// None.
    Unconfined,
    /// A profile's text.
    Profile(String),
}

/// Which AppArmor profile.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum AppArmor {
    /// Ours, where the kernel has AppArmor.
    #[default]
    Default,
    /// None.
    Unconfined,
    /// One that must be loaded.
    Named(String),
}

/// Parts of an SELinux label that take the place of the default's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Label {
    /// No label.
    pub disabled: bool,
    /// SELinux user.
    pub user: Option<String>,
    /// Role.
    pub role: Option<String>,
    /// Type of the process.
    pub kind: Option<String>,
    /// Type of its files.
    pub file_kind: Option<String>,
    /// Sensitivity and categories, as `s0:c1,c2`.
    pub level: Option<String>,
}

impl Label {
    /// Whether it asks for something that only a kernel with SELinux can give.
    pub fn asks(&self) -> bool {
        !self.disabled && *self != Self::default()
    }
}

impl SecurityOptions {
    /// Reads the texts in their order; the last word on a matter counts.
    ///
    /// # Errors
    /// One makes no sense.
    pub fn read(texts: &[String]) -> Result<Self> {
        let mut options = Self::default();
        for text in texts {
            options.add(text)?;
        }
        Ok(options)
    }

    fn add(&mut self, text: &str) -> Result<()> {
        let (key, value) = match text.find(['=', ':']) {
            Some(at) => (&text[..at], Some(&text[at + 1..])),
            None => (text, None),
        };
        match (key, value) {
            ("seccomp", Some("unconfined")) => self.seccomp = Filter::Unconfined,
            ("seccomp", Some("builtin" | "")) => self.seccomp = Filter::Builtin,
            ("seccomp", Some(profile)) => self.seccomp = Filter::Profile(profile.to_owned()),
            ("no-new-privileges", value) => {
                let wrong = || Error::invalid(format!("invalid --security-opt {text:?}: true or false"));
                let switch = value.map_or(Some(true), parse::boolean).ok_or_else(wrong)?;
                self.no_new_privileges = Some(switch);
            }
            ("systempaths", Some("unconfined")) => self.open_paths = true,
            ("landlock", Some("unconfined")) => self.without_landlock = true,
            ("landlock", Some("builtin")) => self.without_landlock = false,
            ("apparmor", Some("unconfined")) => self.apparmor = AppArmor::Unconfined,
            ("apparmor", Some("")) => self.apparmor = AppArmor::Default,
            ("apparmor", Some(profile)) => self.apparmor = AppArmor::Named(profile_name(text, profile)?),
            ("label", Some(part)) => self.add_label(text, part)?,
            _ => return Err(unknown(text)),
        }
        Ok(())
    }

    fn add_label(&mut self, text: &str, part: &str) -> Result<()> {
        if part == "disable" {
            self.label = Label { disabled: true, ..Label::default() };
            return Ok(());
        }
        let Some((key, value)) = part.split_once(':') else { return Err(unknown(text)) };
        let plain = |c: char| c.is_ascii_alphanumeric() || "_.,:-".contains(c);
        if value.is_empty() || !value.chars().all(plain) {
            return Err(Error::invalid(format!("invalid --security-opt {text:?}: no part of a label")));
        }
        let field = match key {
            "user" => &mut self.label.user,
            "role" => &mut self.label.role,
            "type" => &mut self.label.kind,
            "filetype" => &mut self.label.file_kind,
            "level" => &mut self.label.level,
            _ => return Err(unknown(text)),
        };
        *field = Some(value.to_owned());
        Ok(())
    }
}

fn unknown(text: &str) -> Error {
    Error::Invalid {
        message: format!("invalid --security-opt {text:?}"),
        hint: "seccomp=unconfined|builtin|FILE, apparmor=unconfined|NAME, no-new-privileges[=false], \
               systempaths=unconfined, landlock=unconfined, label=disable|user:…|role:…|type:…|level:…"
            .into(),
    }
}

/// A name goes into a file of the kernel and through its list of profiles.
fn profile_name(text: &str, name: &str) -> Result<String> {
    if name.len() > 255 || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(Error::invalid(format!("invalid --security-opt {text:?}: no name of a profile")));
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(texts: &[&str]) -> Result<SecurityOptions> {
        SecurityOptions::read(&texts.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn each_option_has_its_forms() {
        let all = read(&[
            "seccomp:unconfined",
            "apparmor=mine",
            "no-new-privileges:false",
            "systempaths=unconfined",
            "landlock=unconfined",
            "label=type:svirt_t",
            "label:level:s0:c1,c2",
        ])
        .unwrap();
        assert_eq!(all.seccomp, Filter::Unconfined);
        assert_eq!(all.apparmor, AppArmor::Named("mine".into()));
        assert_eq!(all.no_new_privileges, Some(false));
        assert!(all.open_paths && all.without_landlock && all.label.asks());
        assert_eq!(all.label.kind.as_deref(), Some("svirt_t"));
        assert_eq!(all.label.level.as_deref(), Some("s0:c1,c2"));
        assert!(!read(&["label=type:x", "label=disable"]).unwrap().label.asks());
        assert_eq!(read(&["no-new-privileges"]).unwrap().no_new_privileges, Some(true));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "speed=9",
            "seccomp",
            "apparmor",
            "apparmor=two words",
            "apparmor=a\nb",
            "no-new-privileges=perhaps",
            "systempaths=confined",
            "landlock=mine",
            "label",
            "label=shiny",
            "label=type:",
            "label=colour:red",
            "label=type:a b",
        ] {
            assert!(read(&[text]).is_err(), "{text}");
        }
    }
}

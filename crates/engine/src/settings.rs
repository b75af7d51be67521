//! The tables `security`, `network` and `vm` of the configuration file, TOML or JSON: what holds for every instance of this host.
//!
//! ```toml
//! [security]
//! policy = "baseline"          # no instance may be made under a weaker Pod Security Standard
//! no-new-privileges = true     # unless --security-opt no-new-privileges=false
//! userns = "auto"              # root's containers have ids of their own, unless --userns host;
//!                              # "keep-id": ordinary users have their own id in their containers
//! userns-range = "1000000000:1000000"   # where `containers` has none in /etc/subuid and /etc/subgid
//!
//! [network]
//! publish = "0.0.0.0"          # where -p names no address, instead of 127.0.0.1
//!
//! [vm]
//! standby = 2                  # virtual machines started ahead of need, instead of 1
//! ```

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::config::HostConfig;
use crate::error::{Error, Result};
use crate::policy::Level;
use crate::spec::SecurityOptions;

/// What holds where nobody says otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct SecuritySettings {
    /// The weakest standard that an instance may be made under.
    pub policy: Option<Level>,
    /// Programs cannot raise their privileges.
    pub no_new_privileges: bool,
    /// User namespace of containers.
    pub userns: Option<DefaultUserns>,
    /// Ids for `auto` where `/etc/subuid` and `/etc/subgid` give none.
    pub userns_range: Option<IdRange>,
}

/// User namespace where nobody names one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DefaultUserns {
    /// The host's.
    Host,
    /// Ids of the container's own, for root's.
    Auto,
    /// Its own id for an ordinary user.
    KeepId,
}

impl DefaultUserns {
    /// Whether it concerns containers of whom this process belongs to.
    fn is_for_us(self) -> bool {
        match self {
            Self::Host => true,
            Self::Auto => proa_sys::userns::is_initial(),
            Self::KeepId => !proa_sys::userns::is_initial(),
        }
    }
}

/// Ids in a row, as `first:count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct IdRange {
    /// The first.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl TryFrom<String> for IdRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let range = || {
            let (first, count) = text.split_once(':')?;
            let range = Self { first: first.parse().ok()?, count: count.parse().ok()? };
            (range.first > 0 && range.count > 0 && range.first.checked_add(range.count).is_some())
                .then_some(range)
        };
        range().ok_or_else(|| format!("userns-range = {text:?}: FIRST:COUNT is needed, without 0"))
    }
}

/// What holds for networks where nobody says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct NetworkSettings {
    /// Address of the host at which ports are published.
    pub publish: IpAddr,
}

impl Default for NetworkSettings {
    fn default() -> Self {
        Self { publish: IpAddr::V4(Ipv4Addr::LOCALHOST) }
    }
}

/// What holds for virtual machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct VmSettings {
    /// How many may stand by for instances to come.
    pub standby: u32,
}

impl Default for VmSettings {
    fn default() -> Self {
        Self { standby: 1 }
    }
}

impl VmSettings {
    /// Reads the file's `vm` table. A missing file is an empty one.
    ///
    /// # Errors
    /// The file cannot be read or understood.
    pub fn load(path: &Path) -> Result<Self> {
        load(path, "[vm] has standby = NUMBER").map(|file: File| file.vm)
    }
}

/// The tables of the file that are read here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    security: SecuritySettings,
    network: NetworkSettings,
    vm: VmSettings,
}

impl NetworkSettings {
    /// Reads the file's `network` table. A missing file is an empty one.
    ///
    /// # Errors
    /// The file cannot be read or understood.
    pub fn load(path: &Path) -> Result<Self> {
        load(path, "[network] has publish = \"ADDRESS\"").map(|file: File| file.network)
    }
}

impl SecuritySettings {
    /// Writes out what the host decides where the user says nothing.
    ///
    /// # Errors
    /// A security option makes no sense.
    pub fn apply(&self, host: &mut HostConfig) -> Result<()> {
        let options = SecurityOptions::read(&host.security_opt)?;
        if self.no_new_privileges && options.no_new_privileges.is_none() {
            host.security_opt.push("no-new-privileges".into());
        }
        Ok(())
    }

    /// What both ask for: the stricter of each.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            policy: self.policy.max(other.policy),
            no_new_privileges: self.no_new_privileges || other.no_new_privileges,
            userns: self.userns.filter(|userns| userns.is_for_us()).or(other.userns),
            userns_range: self.userns_range.or(other.userns_range),
        }
    }

    /// Reads the file's `security` table; other tables are not the engine's. A missing file is an empty one.
    ///
    /// # Errors
    /// The file cannot be read or understood.
    pub fn load(path: &Path) -> Result<Self> {
        let hint = "[security] has policy = \"privileged|baseline|restricted\", no-new-privileges, \
                    userns = \"host|auto|keep-id\" and userns-range = \"FIRST:COUNT\"";
        load(path, hint).map(|file: File| file.security)
    }
}

/// Reads tables of the configuration file, in TOML or JSON; a missing file is an empty one.
///
/// # Errors
/// The file cannot be read, or not be understood: then with this hint.
pub(crate) fn load<T: DeserializeOwned + Default>(path: &Path, hint: &str) -> Result<T> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(T::default()),
        Err(error) => return Err(Error::io("read", path, error)),
    };
    let parsed: Result<T, String> = if text.trim_start().starts_with('{') {
        serde_json::from_str(&text).map_err(|error| error.to_string())
    } else {
        toml::from_str(&text).map_err(|error| error.to_string())
    };
    parsed.map_err(|message| {
        let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
        Error::invalid_with_hint(format!("{}: {line}", path.display()), hint)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<SecuritySettings> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        SecuritySettings::load(file.path())
    }

    #[test]
    fn toml_and_json_mean_the_same() {
        let expected =
            SecuritySettings { policy: Some(Level::Baseline), no_new_privileges: true, ..Default::default() };
        let toml =
            "[registries.x]\ninsecure = true\n[security]\npolicy = 'baseline'\nno-new-privileges = true\n";
        assert_eq!(load(toml).unwrap(), expected);
        let json = r#"{"security":{"policy":"baseline","no-new-privileges":true}}"#;
        assert_eq!(load(json).unwrap(), expected);
        assert_eq!(load("").unwrap(), SecuritySettings::default());
        assert_eq!(SecuritySettings::load(Path::new("/no/such/file")).unwrap(), SecuritySettings::default());
    }

    #[test]
    fn user_namespaces() {
        let settings = load("[security]\nuserns = 'auto'\nuserns-range = '500000:1000'").unwrap();
        assert_eq!(settings.userns, Some(DefaultUserns::Auto));
        assert_eq!(settings.userns_range, Some(IdRange { first: 500_000, count: 1000 }));
    }

    #[test]
    fn one_virtual_machine_stands_by_unless_the_host_says_otherwise() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let load = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            VmSettings::load(file.path())
        };
        assert_eq!(load("").unwrap().standby, 1);
        assert_eq!(load("[vm]\nstandby = 0").unwrap().standby, 0);
        assert!(load("[vm]\nstandby = -1").unwrap_err().to_string().contains("standby"));
    }

    #[test]
    fn what_is_for_others_hides_nothing() {
        let with = |userns| SecuritySettings { userns: Some(userns), ..Default::default() };
        use DefaultUserns::{Auto, Host, KeepId};
        assert_eq!(with(KeepId).and(with(Auto)), with(Auto));
        assert_eq!(with(Host).and(with(Auto)), with(Host));
    }

    #[test]
    fn of_two_files_the_stricter_holds() {
        let host =
            SecuritySettings { policy: Some(Level::Baseline), no_new_privileges: true, ..Default::default() };
        let own = SecuritySettings { policy: Some(Level::Privileged), ..Default::default() };
        assert_eq!(host.and(own), host);
        assert_eq!(SecuritySettings::default().and(host), host);
    }

    #[test]
    fn a_mistake_is_an_error_and_never_a_weaker_host() {
        for text in [
            "[security]\npolicy = 'strong'",
            "[security]\npolcy = 'baseline'",
            "security = 1",
            "{",
            "[security]\nuserns = 'keep'",
            "[security]\nuserns-range = '0:5'",
        ] {
            let error = load(text).unwrap_err().to_string();
            assert!(error.starts_with('/') && !error.contains('\n'), "{error}");
        }
    }
}

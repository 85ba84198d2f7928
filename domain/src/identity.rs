//! Who may do what: roles, and sets of them (PRD, *Authentication*).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

use crate::text::{is_disguised, shows};

/// A kind of thing that somebody may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum Role {
    /// Read everything but keys and the audit log.
    Viewer,
    /// Upload firmware and change its description.
    Uploader,
    /// Run campaigns, devices, updates and rollbacks.
    Operator,
    /// Approve and reject campaigns.
    Approver,
    /// Everything.
    Admin,
}

/// No role has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no role; there are viewer, uploader, operator, approver and admin")]
pub struct UnknownRole(pub String);

impl Role {
    /// All, the narrowest first.
    pub const ALL: [Self; 5] = [
        Self::Viewer,
        Self::Uploader,
        Self::Operator,
        Self::Approver,
        Self::Admin,
    ];

    /// The name in tokens, keys and answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Uploader => "uploader",
            Self::Operator => "operator",
            Self::Approver => "approver",
            Self::Admin => "admin",
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        let named = Self::ALL.into_iter().find(|role| role.name() == text);
        named.ok_or_else(|| UnknownRole(text.chars().take(64).collect()))
    }
}

impl Serialize for Role {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Role {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// A set of roles.
///
/// ```
/// use device_ota_domain::identity::{Role, Roles};
///
/// let operator = Roles::from_iter([Role::Operator]);
/// assert!(operator.allow(Role::Operator) && operator.allow(Role::Viewer), "every role may read");
/// assert!(!operator.allow(Role::Approver));
/// assert!(Role::ALL.into_iter().all(|role| Roles::ADMIN.allow(role)), "an admin may do everything");
/// assert!(!Roles::NONE.allow(Role::Viewer));
/// assert_eq!(Roles::known("operator admin-of-something-else viewer"), Roles::from_iter([Role::Viewer, Role::Operator]));
/// assert_eq!(operator.to_string(), "operator");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Roles(u8);

impl Roles {
    /// May do nothing.
    pub const NONE: Self = Self(0);
    /// May do everything.
    pub const ADMIN: Self = Self(Role::Admin.bit());

    /// Whether somebody with these roles may do what `role` may. `admin` allows everything, each other one allows
    /// itself and reading.
    pub const fn allow(self, role: Role) -> bool {
        match role {
            Role::Viewer => self.0 != 0,
            _ => self.0 & (role.bit() | Role::Admin.bit()) != 0,
        }
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The roles as they were given, the narrowest first.
    pub fn iter(self) -> impl Iterator<Item = Role> {
        Role::ALL
            .into_iter()
            .filter(move |role| self.0 & role.bit() != 0)
    }

    /// The roles that a list of names separated by spaces holds. Other names mean something to somebody else and
    /// are passed over.
    pub fn known(names: &str) -> Self {
        names
            .split_ascii_whitespace()
            .filter_map(|name| name.parse::<Role>().ok())
            .collect()
    }
}

impl FromIterator<Role> for Roles {
    fn from_iter<I: IntoIterator<Item = Role>>(roles: I) -> Self {
        Self(roles.into_iter().fold(0, |bits, role| bits | role.bit()))
    }
}

impl fmt::Display for Roles {
    /// The names, separated by spaces.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, role) in self.iter().enumerate() {
            let space = if number == 0 { "" } else { " " };
            write!(f, "{space}{role}")?;
        }
        Ok(())
    }
}

impl Serialize for Roles {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for Roles {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Vec::<Role>::deserialize(deserializer)?
            .into_iter()
            .collect())
    }
}

/// Longest subject, in bytes.
pub const MAX_SUBJECT_BYTES: usize = 255;
/// The subject of what the service does by itself (PRD, *Dependencies*).
pub const SERVICE_SUBJECT: &str = "ota_service";

/// Names that records show for what is not somebody else's: the service, the admin key of the data folder, calls from
/// within the house, the command line. `system` is what others take the service for.
pub const RESERVED_SUBJECTS: [&str; 5] = [
    SERVICE_SUBJECT,
    "admin",
    "internal",
    "device-ota keys",
    "system",
];

/// Why a text is nobody's name in the records.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    /// It cannot be shown.
    #[error("subject must be 1 to {MAX_SUBJECT_BYTES} bytes without control characters")]
    Form,
    /// It does not look like what it is.
    #[error("subject must hold no invisible characters, and no space at its ends")]
    Unseen,
    /// It holds a character that looks like a Latin letter, or becomes one in another case.
    #[error("subject must hold no {0:?}, which stands for other letters; write those")]
    Disguised(char),
    /// Records show it for somebody else.
    #[error("subject must not be one of {}: records show them for the service and its own keys", RESERVED_SUBJECTS.join(", "))]
    Reserved,
}

/// Whether somebody may be known by this name.
///
/// ```
/// # use device_ota_domain::identity::check_subject;
/// assert!(check_subject("user-17").is_ok() && check_subject("a b@c").is_ok());
/// assert!(check_subject("").is_err() && check_subject("a\nb").is_err());
/// assert!(check_subject("ota_service").is_err() && check_subject("Admin").is_err() && check_subject("admins").is_ok());
/// assert!(check_subject("admin ").is_err() && check_subject("ad\u{200b}min").is_err());
/// assert!(check_subject("device-ota\u{a0} KEYS").is_err() && check_subject("Zoë").is_ok());
/// assert!(check_subject("adm\u{131}n").is_err() && check_subject("\u{212a}ate").is_err() && check_subject("Strauß").is_ok());
/// ```
pub fn check_subject(subject: &str) -> Result<(), SubjectError> {
    let fits = (1..=MAX_SUBJECT_BYTES).contains(&subject.len());
    if !fits || subject.chars().any(char::is_control) {
        return Err(SubjectError::Form);
    }
    if !shows(subject) || subject.trim() != subject {
        return Err(SubjectError::Unseen);
    }
    if let Some(disguised) = subject.chars().find(|c| is_disguised(*c)) {
        return Err(SubjectError::Disguised(disguised));
    }
    // In any case of letters, those that have Latin capitals among them, and with any kind of space: people read records.
    let plain = subject.split_whitespace().collect::<Vec<_>>().join(" ");
    let capitals = plain.to_uppercase();
    let reserved = RESERVED_SUBJECTS
        .iter()
        .any(|reserved| reserved.to_uppercase() == capitals);
    if reserved {
        Err(SubjectError::Reserved)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_looks_like_somebody_else() {
        for reserved in RESERVED_SUBJECTS {
            assert_eq!(check_subject(reserved), Err(SubjectError::Reserved));
            for space in [' ', '\u{a0}', '\u{2003}', '\u{3000}'] {
                for looks_alike in [format!("{reserved}{space}"), format!("{space}{reserved}")] {
                    let told = check_subject(&looks_alike);
                    assert_eq!(told, Err(SubjectError::Unseen), "{looks_alike:?}");
                }
            }
            for unseen in [
                '\u{ad}', '\u{200b}', '\u{200f}', '\u{202e}', '\u{2060}', '\u{2069}', '\u{feff}',
            ] {
                for looks_alike in [
                    format!("{reserved}{unseen}"),
                    reserved.replacen('m', &format!("m{unseen}"), 1) + &unseen.to_string(),
                ] {
                    let told = check_subject(&looks_alike);
                    assert_eq!(told, Err(SubjectError::Unseen), "{looks_alike:?}");
                }
            }
        }
        for (disguised, plain) in [('\u{212a}', "K"), ('ſ', "s"), ('ﬁ', "fi"), ('ﬆ', "st")] {
            let told = check_subject(&format!("de{disguised}m"));
            assert_eq!(told, Err(SubjectError::Disguised(disguised)), "{plain}");
        }
        for reserved in ["admın", "ınternal"] {
            assert_eq!(check_subject(reserved), Err(SubjectError::Reserved));
        }
        let fine = [
            "José Núñez",
            "用户 17",
            "a-b_c@d.example",
            "deploy bot",
            "Strauß",
            "Yılmaz",
        ];
        for fine in fine {
            assert_eq!(check_subject(fine), Ok(()), "{fine}");
        }
    }
}

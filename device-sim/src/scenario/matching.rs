//! What a story expects, held against what the service says: a part of its JSON, field by field.
//!
//! A table matches when each of its fields does; a list when each of its entries matches the one at the same place. A
//! text that begins with `>=` or `<=` asks for a number. A field that the service does not tell is a mistake of the
//! story, not something to wait for.

use serde_json::Value;

/// The story asks for a field that there is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no `{0}` in what the service tells")]
pub struct NoSuchField(pub String);

/// One thing that was expected, and what was seen.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Compared {
    /// Which field.
    pub field: String,
    /// As the story has it.
    pub expected: Value,
    /// As it is; null where a list is too short.
    pub seen: Value,
    /// Whether it is as expected.
    pub holds: bool,
}

/// Holds each expected field against the one that is seen; `path` names the whole.
pub fn compare(path: &str, expected: &Value, seen: &Value) -> Result<Vec<Compared>, NoSuchField> {
    let mut compared = Vec::new();
    go_through(path, expected, seen, &mut compared)?;
    Ok(compared)
}

/// Whether all is as expected.
pub fn holds(expected: &Value, seen: &Value) -> Result<bool, NoSuchField> {
    Ok(compare("", expected, seen)?.iter().all(|it| it.holds))
}

fn go_through(
    path: &str,
    expected: &Value,
    seen: &Value,
    compared: &mut Vec<Compared>,
) -> Result<(), NoSuchField> {
    match (expected, seen) {
        (Value::Object(fields), Value::Object(all)) => {
            for (name, expected) in fields {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                let seen = all.get(name).ok_or_else(|| NoSuchField(path.clone()))?;
                go_through(&path, expected, seen, compared)?;
            }
        }
        (Value::Array(entries), Value::Array(all)) => {
            for (index, expected) in entries.iter().enumerate() {
                let path = format!("{path}[{index}]");
                match all.get(index) {
                    Some(seen) => go_through(&path, expected, seen, compared)?,
                    None => compared.push(one(path, expected, &Value::Null)),
                }
            }
        }
        _ => compared.push(one(path.to_owned(), expected, seen)),
    }
    Ok(())
}

fn one(field: String, expected: &Value, seen: &Value) -> Compared {
    Compared {
        field,
        expected: expected.clone(),
        seen: seen.clone(),
        holds: is_as(expected, seen),
    }
}

fn is_as(expected: &Value, seen: &Value) -> bool {
    if let Some(text) = expected.as_str()
        && let Some(number) = seen.as_f64()
    {
        let bound = |sign| text.strip_prefix(sign).and_then(|n| n.trim().parse().ok());
        return bound(">=").is_some_and(|least: f64| number >= least)
            || bound("<=").is_some_and(|most: f64| number <= most);
    }
    match (expected.as_f64(), seen.as_f64()) {
        // A whole number is the same number with and without a point.
        (Some(expected), Some(seen)) => (expected - seen).abs() < f64::EPSILON,
        _ => expected == seen,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use serde_json::json;

    fn seen() -> Value {
        json!({"status": "completed", "completed_devices": 12, "percent": 10.0,
               "rollback": {"failed": 0}, "waits": [{"code": "gate_soak", "stage": "a"}]})
    }

    #[test]
    fn a_part_matches_a_whole() {
        let all = json!({"status": "completed", "completed_devices": ">= 12", "percent": 10,
                         "rollback": {"failed": "<=0"}, "waits": [{"code": "gate_soak"}]});
        assert!(holds(&all, &seen()).unwrap());
        for wrong in [
            json!({"status": "paused"}),
            json!({"completed_devices": ">= 13"}),
            json!({"completed_devices": "12"}),
            json!({"rollback": {"failed": 1}}),
            json!({"waits": [{}, {"code": "gate_soak"}]}),
            json!({"status": ">= 1"}),
        ] {
            assert!(!holds(&wrong, &seen()).unwrap(), "{wrong}");
        }
    }

    #[test]
    fn what_is_not_there_is_named() {
        let wrong = json!({"rollback": {"failled": 0}});
        let error = compare("campaign", &wrong, &seen()).unwrap_err();
        assert_eq!(error, NoSuchField("campaign.rollback.failled".to_owned()));
    }
}

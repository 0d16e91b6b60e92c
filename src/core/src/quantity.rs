//! Kubernetes quantities: of bytes (`512Mi`, `10M`, `65536`) and of cores (`500m`, `1.5`).

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

const SUFFIXES: [(&str, u64); 10] = [
    ("Ti", 1 << 40),
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
    ("T", 1_000_000_000_000),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("K", 1000),
    ("k", 1000),
    ("", 1),
];

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (suffix, unit) =
            SUFFIXES[..4].iter().find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit)).unwrap_or(&("", 1));
        write!(f, "{}{suffix}", self.0 / unit)
    }
}

impl FromStr for Bytes {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not an amount of bytes; write it as 65536, 10Mi or 2G");
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let suffix = &text[digits.len()..];
        let (_, unit) = SUFFIXES.iter().find(|(name, _)| *name == suffix).ok_or_else(wrong)?;
        if let Ok(whole) = digits.parse::<u64>() {
            return whole.checked_mul(*unit).map(Self).ok_or_else(wrong);
        }
        let value: f64 = digits.parse().map_err(|_| wrong())?;
        let bytes = value * *unit as f64;
        if (0.0..9e18).contains(&bytes) { Ok(Self(bytes.ceil() as u64)) } else { Err(wrong()) }
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Amount;
        impl Visitor<'_> for Amount {
            type Value = Bytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an amount of bytes such as 10Mi")
            }
            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Bytes, E> {
                Ok(Bytes(bytes))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Amount)
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Bytes {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Quantity".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?(Ki|Mi|Gi|Ti|k|K|M|G|T)?$"}],
            "description": "An amount of bytes: a number, or a number with Ki, Mi, Gi, Ti (powers of 1024) or k, M, G, T (powers of 1000)."})
    }
}

/// Thousandths of a core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cpu(pub u32);

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1000) { write!(f, "{}", self.0 / 1000) } else { write!(f, "{}m", self.0) }
    }
}

impl FromStr for Cpu {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not an amount of CPU; write it as 500m, 2 or 1.5");
        let (number, unit) = match text.strip_suffix('m') {
            Some(number) => (number, 1.0),
            None => (text, 1000.0),
        };
        if !number.starts_with(|c: char| c.is_ascii_digit()) || number.contains(['e', 'E']) {
            return Err(wrong());
        }
        let millis = number.parse::<f64>().map_err(|_| wrong())? * unit;
        if (0.0..=1e9).contains(&millis) { Ok(Self(millis.ceil() as u32)) } else { Err(wrong()) }
    }
}

impl Serialize for Cpu {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cpu {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Amount;
        impl Visitor<'_> for Amount {
            type Value = Cpu;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an amount of CPU such as 500m or 1.5")
            }
            fn visit_u64<E: de::Error>(self, cores: u64) -> Result<Cpu, E> {
                cores.to_string().parse().map_err(E::custom)
            }
            fn visit_f64<E: de::Error>(self, cores: f64) -> Result<Cpu, E> {
                cores.to_string().parse().map_err(E::custom)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Cpu, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Amount)
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Cpu {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "CpuQuantity".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?m?$"}],
            "description": "An amount of CPU: cores as a number, or thousandths of a core with m."})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_what_they_write() {
        for (text, bytes) in [("10Mi", 10 << 20), ("1Gi", 1 << 30), ("65537", 65537), ("64Ki", 65536), ("0", 0)] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)));
            assert_eq!(Bytes(bytes).to_string(), text);
        }
        assert_eq!("1.5Ki".parse(), Ok(Bytes(1536)));
        assert_eq!("2M".parse(), Ok(Bytes(2_000_000)));
    }

    #[test]
    fn cpu_is_read_as_kubernetes_writes_it() {
        for (text, millis, shown) in
            [("500m", 500, "500m"), ("2", 2000, "2"), ("1.5", 1500, "1500m"), ("0.1", 100, "100m")]
        {
            assert_eq!(text.parse(), Ok(Cpu(millis)));
            assert_eq!(Cpu(millis).to_string(), shown);
        }
        assert_eq!(serde_json::from_str::<Cpu>("2").unwrap(), Cpu(2000));
        assert_eq!(serde_json::from_str::<Cpu>("0.25").unwrap(), Cpu(250));
        for text in ["", "m", "-1", "1e3", "nan", "inf", "5k", "99999999999"] {
            assert!(text.parse::<Cpu>().is_err(), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "Mi", "10MiB", "-1", "1e300", "nan", "99999999Ti", "inf"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }
}

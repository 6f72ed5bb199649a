//! Numbers as readers see them: rounded, with thousands separated, and durations and sizes in fitting units.

/// Formats a value with about four significant digits, without zeros at the end.
pub fn value(v: f64) -> String {
    let size = v.abs();
    if v.is_nan() {
        return "NaN".to_string();
    }
    if v.is_infinite() {
        return if v > 0.0 { "∞".to_string() } else { "−∞".to_string() };
    }
    let text = if v == 0.0 {
        return "0".to_string();
    } else if v.fract() == 0.0 && size < 1e15 {
        return signed(&thousands(size as usize), v);
    } else if !(1e-4..1e6).contains(&size) {
        let text = format!("{size:.3e}");
        let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
        format!("{}e{power}", trimmed(digits))
    } else {
        let decimals = (3 - size.log10().floor() as i32).max(0) as usize;
        let text = format!("{size:.decimals$}");
        match text.split_once('.') {
            Some((whole, _)) => {
                let digits = trimmed(&text).strip_prefix(whole).unwrap_or_default();
                format!("{}{digits}", thousands(whole.parse().unwrap_or_default()))
            }
            None => thousands(text.parse().unwrap_or_default()),
        }
    };
    signed(&text, v)
}

fn signed(text: &str, v: f64) -> String {
    if v < 0.0 { format!("−{text}") } else { text.to_string() }
}

fn trimmed(digits: &str) -> &str {
    if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits }
}

/// Formats 675129632 as 675,129,632.
pub fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Formats the value at a tick of an axis: 0.25, 150, 20k, 1.5M, 2e-4.
pub fn tick(v: f64) -> String {
    let size = v.abs();
    let short = |v: f64, unit: &str| signed(&format!("{}{unit}", trimmed(&format!("{:.3}", v.abs()))), v);
    match size {
        0.0 => "0".to_string(),
        _ if size >= 1e15 => format!("{v:.1e}"),
        _ if size >= 1e9 => short(v / 1e9, "G"),
        _ if size >= 1e6 => short(v / 1e6, "M"),
        _ if size >= 1e4 => short(v / 1e3, "k"),
        _ if size >= 1e-3 => signed(trimmed(&format!("{size:.6}")), v),
        _ => {
            let text = format!("{size:.2e}");
            let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
            signed(&format!("{}e{power}", trimmed(digits)), v)
        }
    }
}

/// Formats a duration in seconds: 0.021 s, 12.5 s, 3 min 20 s, 2 h 5 min.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..=59 => format!("{} s", value((seconds * 1e4).round() / 1e4)),
        60..=3599 => format!("{} min {} s", whole / 60, whole % 60),
        3600..=86399 => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", thousands((whole / 86400) as usize), whole % 86400 / 3600),
    }
}

/// Formats a size in bytes in the largest fitting binary unit.
pub fn bytes(size: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let power = (size.max(1.0).log2() / 10.0).floor().min(4.0) as usize;
    let decimals = usize::from(power > 0);
    format!("{:.decimals$} {}", size / 1024_f64.powi(power as i32), units[power])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_and_thousands() {
        let all = [
            (0.123_456, "0.1235"),
            (12.345_6, "12.35"),
            (1234.56, "1,235"),
            (100_000.0, "100,000"),
            (-2.5, "−2.5"),
            (0.0, "0"),
            (0.000_012_3, "1.23e-5"),
            (1_234_567.8, "1.235e6"),
            (f64::NAN, "NaN"),
        ];
        for (v, expected) in all {
            assert_eq!(value(v), expected);
        }
        let all =
            [(20_000.0, "20k"), (1.5e6, "1.5M"), (150.0, "150"), (2e-4, "2e-4"), (-0.25, "−0.25"), (2000.0, "2000")];
        for (v, expected) in all {
            assert_eq!(tick(v), expected);
        }
        assert_eq!(duration(0.021_34), "0.0213 s");
        assert_eq!(duration(200.0), "3 min 20 s");
        assert_eq!(duration(7512.0), "2 h 5 min");
        assert_eq!(bytes(123.0), "123 B");
        assert_eq!(bytes(1.5 * 1024.0 * 1024.0), "1.5 MiB");
    }
}

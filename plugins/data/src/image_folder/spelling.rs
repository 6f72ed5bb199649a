//! Compares file names whose Unicode normalization differs. Archives made on macOS contain decomposed names (NFD: "e"
//! and a combining accent), while other programs write composed names (NFC).

/// Composed letters, each followed by its base letter, for each combining mark.
const COMPOSED: [(char, &str); 13] = [
    ('\u{300}', "ÀAÈEÌIÒOÙUàaèeìiòoùuǸNǹnẀWẁwỲYỳy"),
    ('\u{301}', "ÁAÉEÍIÓOÚUÝYáaéeíióoúuýyĆCćcĹLĺlŃNńnŔRŕrŚSśsŹZźzǴGǵgẂWẃw"),
    ('\u{302}', "ÂAÊEÎIÔOÛUâaêeîiôoûuĈCĉcĜGĝgĤHĥhĴJĵjŜSŝsŴWŵwŶYŷyẐZẑz"),
    ('\u{303}', "ÃAÑNÕOãañnõoĨIĩiŨUũuẼEẽeỸYỹy"),
    ('\u{304}', "ĀAāaĒEēeĪIīiŌOōoŪUūu"),
    ('\u{306}', "ĂAăaĔEĕeĞGğgĬIĭiŎOŏoŬUŭuЙИйи"),
    ('\u{307}', "ĊCċcĖEėeĠGġgİIŻZżz"),
    ('\u{308}', "ÄAËEÏIÖOÜUäaëeïiöoüuÿyŸYЁЕёеЇІїі"),
    ('\u{30a}', "ÅAåaŮUůu"),
    ('\u{30b}', "ŐOőoŰUűu"),
    ('\u{30c}', "ČCčcĎDďdĚEěeŇNňnŘRřrŠSšsŤTťtŽZžzǍAǎaǏIǐiǑOǒoǓUǔuǦGǧg"),
    ('\u{327}', "ÇCçcĢGģgĶKķkĻLļlŅNņnŖRŗrŞSşsŢTţt"),
    ('\u{328}', "ĄAąaĘEęeĮIįiŲUųu"),
];

/// Returns a name in decomposed spelling: Latin and Cyrillic letters with one mark, Hangul syllables, and kana.
pub fn decomposed(name: &str) -> String {
    let mut all = String::with_capacity(name.len());
    name.chars().for_each(|letter| decompose(letter, &mut all));
    all
}

fn decompose(letter: char, into: &mut String) {
    let code = u32::from(letter);
    match code {
        0..0xc0 => into.push(letter),
        0xac00..=0xd7a3 => {
            // Hangul syllables are numbered by lead, vowel and tail. Source: Unicode, section 3.12.
            let index = code - 0xac00;
            let parts = [0x1100 + index / 588, 0x1161 + index % 588 / 28, 0x11a7 + index % 28];
            let parts = parts.into_iter().filter(|part| *part != 0x11a7).filter_map(char::from_u32);
            into.extend(parts);
        }
        0x304b..=0x30fa => {
            let kana = if code >= 0x30a0 { code - 0x60 } else { code };
            // Number of code points between the plain letter and the one with a mark, and the mark.
            let (back, mark) = match kana {
                0x304c..=0x3062 if kana % 2 == 0 => (1, '\u{3099}'),
                0x3065 | 0x3067 | 0x3069 => (1, '\u{3099}'),
                0x3070..=0x307d if kana % 3 == 1 => (1, '\u{3099}'),
                0x3070..=0x307d if kana % 3 == 2 => (2, '\u{309a}'),
                _ => return into.push(letter),
            };
            into.extend(char::from_u32(code - back));
            into.push(mark);
        }
        _ => {
            let found = COMPOSED.iter().find_map(|(mark, pairs)| {
                let mut pairs = pairs.chars();
                while let (Some(composed), Some(base)) = (pairs.next(), pairs.next()) {
                    if composed == letter {
                        return Some([base, *mark]);
                    }
                }
                None
            });
            match found {
                Some(parts) => into.extend(parts),
                None => into.push(letter),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn composed_and_decomposed_names_are_equal() {
        for (composed, expected) in [
            ("caf\u{e9}.png", "cafe\u{301}.png"),
            ("\u{c5}ngstr\u{f6}m", "A\u{30a}ngstro\u{308}m"),
            ("\u{439}", "\u{438}\u{306}"),
            ("\u{ac00}\u{ac01}", "\u{1100}\u{1161}\u{1100}\u{1161}\u{11a8}"),
            ("\u{304c}\u{3071}\u{30d7}", "\u{304b}\u{3099}\u{306f}\u{309a}\u{30d5}\u{309a}"),
            ("plain", "plain"),
            ("\u{540d}\u{524d}", "\u{540d}\u{524d}"),
        ] {
            assert_eq!(decomposed(composed), expected);
            assert_eq!(decomposed(expected), expected);
        }
    }

    #[test]
    fn the_table_has_pairs() {
        assert!(COMPOSED.iter().all(|(_, pairs)| pairs.chars().count() % 2 == 0));
        let bases = COMPOSED.iter().flat_map(|(_, pairs)| pairs.chars().skip(1).step_by(2));
        assert!(bases.clone().all(|base| base.is_ascii_alphabetic() || ('\u{400}'..'\u{500}').contains(&base)));
    }
}

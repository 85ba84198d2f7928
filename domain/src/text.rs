//! What names are made of: people read them in lists and records, and must see all that is in them.

/// Whether all of a text shows: it holds no control character, and nothing that is invisible or changes how its neighbours are
/// shown.
///
/// ```
/// # use device_ota_domain::text::shows;
/// assert!(shows("Köln, 2. Stock") && shows("用户 17"));
/// assert!(!shows("a\nb") && !shows("SF\u{200b}-100") && !shows("1.0\u{202e}0.2"));
/// ```
pub fn shows(text: &str) -> bool {
    !text.chars().any(|c| c.is_control() || is_invisible(c))
}

/// Characters that show nothing, or change how their neighbours are shown: soft hyphen and joiners, directions, fillers,
/// selectors of variants, tags (Unicode's *default ignorable* ones).
pub const fn is_invisible(character: char) -> bool {
    matches!(character,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
        | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}')
}

/// A character of another form than the Latin letters that it is, or stands for, in any case: the Kelvin sign, the long s,
/// ligatures. ß and ı are letters of their own.
pub fn is_disguised(character: char) -> bool {
    !character.is_ascii()
        && !matches!(character, 'ß' | 'ı')
        && (character.to_lowercase().all(|c| c.is_ascii())
            || character.to_uppercase().all(|c| c.is_ascii()))
}

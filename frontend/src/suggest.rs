//! «did you mean»: the nearest of a few known words.

/// Longest word that is compared; hostile names are not worth a quadratic table.
const COMPARED_BYTES_MAX: usize = 64;

/// The option nearest to `word`, when it is within edit distance 2; the first of equals wins.
pub fn nearest<'a>(word: &str, options: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > COMPARED_BYTES_MAX {
        return None;
    }
    let word = word.to_lowercase();
    options
        .into_iter()
        .filter(|option| option.len() <= COMPARED_BYTES_MAX)
        .map(|option| (distance(&word, &option.to_lowercase()), option))
        .filter(|(distance, _)| *distance <= 2)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, option)| option)
}

/// ` (did you mean X?)` or nothing.
pub(crate) fn hint<'a>(word: &str, options: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, options).map(|option| format!(" (did you mean {option}?)")).unwrap_or_default()
}

fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

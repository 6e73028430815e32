//! Counts in sentences.

use std::fmt::Display;

/// `1 layer`, `2 layers`, `0 layers`.
pub fn counted<N: Display + PartialEq + From<u8>>(count: N, one: &str, many: &str) -> String {
    let noun = if count == N::from(1) { one } else { many };
    format!("{count} {noun}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_the_only_singular() {
        let say = |count| counted::<u64>(count, "image", "images");
        assert_eq!([say(0), say(1), say(2)], ["0 images", "1 image", "2 images"]);
    }
}

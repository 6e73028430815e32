//! `rbuild images --tree`: each image once, its names above each other, and below them the platforms of several.

use rbuild_cache::store::{ImageRecord, Store};
use rbuild_oci::{Digest, Document};
use unicode_width::UnicodeWidthStr;

use super::stored::Named;
use crate::error::BuildError;
use crate::report::human;

/// Blanks between columns.
const GAP: &str = "   ";

/// One line: what stands in the first column, and the figures of an image behind its last name.
struct Line {
    name: String,
    image: Option<[String; 3]>,
}

/// The whole text; images that `wanted` names several times stand where their first name is.
pub(super) fn render(store: &Store, wanted: &[&Named]) -> Result<String, BuildError> {
    let mut groups: Vec<Vec<&Named>> = Vec::new();
    for named in wanted {
        match groups.iter_mut().find(|group| group[0].record.config == named.record.config) {
            Some(group) => group.push(named),
            None => groups.push(vec![named]),
        }
    }
    let mut blocks = Vec::with_capacity(groups.len());
    for group in &groups {
        blocks.push(block(store, group)?);
    }
    Ok(text(&blocks))
}

/// The lines of one image.
fn block(store: &Store, names: &[&Named]) -> Result<Vec<Line>, BuildError> {
    let record = &names[0].record;
    let mut lines: Vec<Line> = names
        .iter()
        .map(|named| Line {
            name: named.reference.as_ref().map_or_else(|| "<untagged>".to_owned(), |_| named.familiar()),
            image: None,
        })
        .collect();
    let mut images = Vec::new();
    for image in record.each() {
        images.push((
            image.platform.clone(),
            image.size_bytes,
            content_bytes(store, image)?,
            image.config.short(),
        ));
    }
    let (files, content) = images.iter().fold((0, 0), |sum, image| (sum.0 + image.1, sum.1 + image.2));
    let id = record.digest().unwrap_or(record.config).short();
    if let Some(last) = lines.last_mut() {
        last.image = Some([id, human::size(files + content), human::size(content)]);
    }
    if images.len() > 1 {
        let end = images.len() - 1;
        for (at, (platform, files, content, id)) in images.into_iter().enumerate() {
            let branch = if at == end { '└' } else { '├' };
            let figures = [id, human::size(files + content), human::size(content)];
            lines.push(Line { name: format!("{branch}─ {platform}"), image: Some(figures) });
        }
    }
    Ok(lines)
}

/// Bytes of an image's documents and compressed layers in the store. Layers that were never exported have none.
fn content_bytes(store: &Store, image: &ImageRecord) -> Result<u64, BuildError> {
    let size = |digest: &Digest| Ok::<u64, BuildError>(store.blob(digest)?.map_or(0, |blob| blob.size));
    let mut total = size(&image.config)?;
    let Some(manifest) = image.manifest else { return Ok(total) };
    let Some(bytes) = store.blob_bytes(&manifest, Document::BYTES_MAX as u64)? else { return Ok(total) };
    total += bytes.len() as u64;
    // Of a pulled image that is one of an index, the index is what is known by digest.
    if let Ok(Document::Manifest(manifest)) = Document::parse(&bytes, None) {
        for layer in manifest.layers() {
            if let Ok(digest) = layer.digest().to_string().parse() {
                total += size(&digest)?;
            }
        }
    }
    Ok(total)
}

fn text(blocks: &[Vec<Line>]) -> String {
    let names = blocks.iter().flatten().map(|line| line.name.width());
    let width = names.max().unwrap_or(0).max("IMAGE".len());
    let row = |name: &str, [id, disk, content]: [&str; 3], extra: &str| {
        let fill = " ".repeat(width - name.width());
        let line = format!("{name}{fill}{GAP}{id:<12}{GAP}{disk:>10}{GAP}{content:>12}{GAP}{extra}");
        format!("{}\n", line.trim_end())
    };
    let mut text = row("IMAGE", ["ID", "DISK USAGE", "CONTENT SIZE"], "EXTRA");
    for (at, block) in blocks.iter().enumerate() {
        if at > 0 {
            text.push('\n');
        }
        for line in block {
            match &line.image {
                Some(figures) => text.push_str(&row(&line.name, figures.each_ref().map(String::as_str), "")),
                None => text.push_str(&format!("{}\n", line.name)),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_above_each_other_and_platforms_below() {
        let line = |name: &str, figures: [&str; 3]| Line {
            name: name.to_owned(),
            image: figures.iter().any(|f| !f.is_empty()).then(|| figures.map(str::to_owned)),
        };
        let blocks = [
            vec![line("me/app:1", [""; 3]), line("me/app:2", ["0123456789ab", "12.8MB", "3.86MB"])],
            vec![
                line("multi:latest", ["ba9876543210", "20MB", "8MB"]),
                line("├─ linux/amd64", ["aaaaaaaaaaaa", "10MB", "4MB"]),
                line("└─ linux/arm64", ["bbbbbbbbbbbb", "10MB", "4MB"]),
            ],
        ];
        insta::assert_snapshot!(text(&blocks));
    }
}

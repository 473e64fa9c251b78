//! A filter that crashes on demand.

use anyhow::{Context as _, Result, bail, ensure};
use std::ops::Range;
use wasmparser::{ExternalKind, Parser, Payload, TypeRef};

/// The module with its exported function `export` doing nothing but trap, and every other byte as it was.
///
/// # Errors
/// When there is no such function, or another export goes by the same code.
pub fn trapping(module: &[u8], export: &str) -> Result<Vec<u8>> {
    let (mut imported, mut exported, mut bodies) = (0, Vec::new(), Vec::<Range<usize>>::new());
    for payload in Parser::new(0).parse_all(module) {
        match payload? {
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    imported += usize::from(matches!(import?.ty, TypeRef::Func(_)));
                }
            }
            Payload::ExportSection(exports) => {
                for each in exports {
                    let each = each?;
                    if each.kind == ExternalKind::Func {
                        exported.push((each.name, usize::try_from(each.index)?));
                    }
                }
            }
            Payload::CodeSectionEntry(body) => {
                let Range { start, end } = body.range();
                bodies.push(usize::try_from(start)?..usize::try_from(end)?);
            }
            _ => {}
        }
    }
    let (_, index) = *exported
        .iter()
        .find(|(name, _)| *name == export)
        .with_context(|| format!("no export `{export}`"))?;
    if let Some((other, _)) = exported
        .iter()
        .find(|(name, same)| *same == index && *name != export)
    {
        bail!("`{other}` goes by the same code");
    }
    let body = index
        .checked_sub(imported)
        .and_then(|index| bodies.get(index).cloned())
        .with_context(|| format!("`{export}` is not of this module"))?;
    let mut changed = module.to_vec();
    let code = changed.get_mut(body).context("a body outside")?;
    ensure!(code.len() >= 3, "no room");
    // No locals, `unreachable`, as many `nop` as there is room for, `end` (WebAssembly core specification, §5.4).
    code.fill(0x01);
    code[..2].copy_from_slice(&[0x00, 0x00]);
    if let Some(last) = code.last_mut() {
        *last = 0x0b;
    }
    Ok(changed)
}

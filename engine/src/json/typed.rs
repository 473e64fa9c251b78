//! A document as a value of a type: what formats of this house are read with.
//!
//! `serde_json` would read them too, at several times the code: it is ready for structs written as lists, for floats, for readers of every kind, and tells
//! places. This is a walk over the tape, with one way to write each thing. A struct is given its members in its own order, whatever order they come in,
//! so that what is compiled for each type is a list of its fields and no search for their names. Those that may be missing, an `Option` among them,
//! have `#[serde(default)]`.

use super::{Document, Kind, Value, parse_up_to};
use alloc::{
    boxed::Box,
    string::{String, ToString},
};
use core::fmt;
use serde::{
    Deserialize, Deserializer,
    de::{
        DeserializeSeed, EnumAccess, Error as _, Expected, MapAccess, SeqAccess, Unexpected,
        VariantAccess, Visitor,
    },
};

/// Values and keys of one document. A bundle of 16,384 small policies has some 350,000; one of 4 MiB cannot have more than this.
const MAX_TYPED_NODES: usize = 1 << 21;

/// Members of a struct: of one with more, those behind are unknown. The largest that is read has 14.
const MAX_MEMBERS: usize = 24;

/// Why a text is no value of the type. Never holds a value, but may name a key.
#[derive(Debug, PartialEq, Eq)]
#[expect(
    clippy::box_collection,
    reason = "one word, since every function that reads anything may give one back"
)]
pub struct Mismatch(Box<String>);

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl core::error::Error for Mismatch {}

impl serde::de::Error for Mismatch {
    fn custom<T: fmt::Display>(message: T) -> Mismatch {
        Mismatch(Box::new(message.to_string()))
    }

    /// Says nothing of what is there instead.
    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Mismatch {
        Mismatch::custom(format_args!("expected {expected}"))
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Mismatch {
        Mismatch::custom(format_args!("expected {expected}"))
    }
}

/// Reads a JSON text as a value of a type. As strict as [`super::parse`], and nothing may be missing or too much.
pub fn read<'t, T: Deserialize<'t>>(text: &'t [u8]) -> Result<T, Mismatch> {
    let document = parse_up_to(MAX_TYPED_NODES, text).map_err(Mismatch::custom)?;
    T::deserialize(document.root())
}

/// Reads one member of a JSON object that may have others.
pub fn read_member<'t, T: Deserialize<'t>>(
    text: &'t [u8],
    name: &'static str,
) -> Result<T, Mismatch> {
    let document = parse_up_to(MAX_TYPED_NODES, text).map_err(Mismatch::custom)?;
    let member = document.root().get(name);
    T::deserialize(member.ok_or_else(|| Mismatch::missing_field(name))?)
}

impl<'d, 't> Value<'d, 't> {
    fn integer<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        let number = self.as_number().unwrap_or_default();
        if let Ok(number) = number.parse() {
            return visitor.visit_u64(number);
        }
        match number.parse() {
            Ok(number) => visitor.visit_i64(number),
            Err(_) => Err(expected(&visitor)),
        }
    }

    fn word<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.as_str() {
            Some(text) => visitor.visit_string(text.into_owned()),
            None => Err(expected(&visitor)),
        }
    }

    /// A word that is only compared.
    fn name<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.as_str() {
            Some(text) => visitor.visit_str(&text),
            None => Err(expected(&visitor)),
        }
    }

    fn list<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        if self.kind() != Kind::Array {
            return Err(expected(&visitor));
        }
        let mut inside = self.inside();
        let value = visitor.visit_seq(&mut inside)?;
        match inside.next() {
            None => Ok(value),
            Some(_) => Err(Mismatch::custom("expected a shorter list")),
        }
    }

    fn map<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.kind() {
            Kind::Object => visitor.visit_map(&mut self.inside()),
            _ => Err(expected(&visitor)),
        }
    }

    fn object<V: Visitor<'t>>(
        self,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        if self.kind() != Kind::Object {
            return Err(expected(&visitor));
        }
        let mut members = Members::of(self.inside(), names)?;
        match visitor.visit_seq(&mut members) {
            Err(why) => Err(members.absent().map_or(why, Mismatch::missing_field)),
            read => read,
        }
    }

    fn inside(self) -> Inside<'d, 't> {
        Inside {
            document: self.doc,
            next: self.index + 1,
            end: self.node.next,
        }
    }
}

fn expected(what: &dyn Expected) -> Mismatch {
    Mismatch::invalid_type(Unexpected::Unit, what)
}

/// What is in a container, of an object keys and values in turn.
struct Inside<'d, 't> {
    document: &'d Document<'t>,
    next: u32,
    end: u32,
}

impl<'d, 't> Inside<'d, 't> {
    fn next(&mut self) -> Option<Value<'d, 't>> {
        let value = self
            .document
            .value(self.next)
            .filter(|_| self.next < self.end)?;
        self.next = value.node.next;
        Some(value)
    }
}

impl<'t> SeqAccess<'t> for &mut Inside<'_, 't> {
    type Error = Mismatch;

    fn next_element_seed<T: DeserializeSeed<'t>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Mismatch> {
        self.next().map(|value| seed.deserialize(value)).transpose()
    }
}

impl<'t> MapAccess<'t> for &mut Inside<'_, 't> {
    type Error = Mismatch;

    fn next_key_seed<K: DeserializeSeed<'t>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Mismatch> {
        self.next().map(|key| seed.deserialize(key)).transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'t>>(&mut self, seed: V) -> Result<V::Value, Mismatch> {
        match self.next() {
            Some(value) => seed.deserialize(value),
            None => Err(Mismatch::custom("expected a value")),
        }
    }
}

/// The members of an object that is read as a struct, in the order in which the struct has them.
struct Members<'d, 't> {
    document: &'d Document<'t>,
    names: &'static [&'static str],
    /// Where each one's value is in the document; 0, where the document begins, for one that is not there.
    places: [u32; MAX_MEMBERS],
    /// How many have been asked for.
    asked: usize,
}

impl<'d, 't> Members<'d, 't> {
    /// Fails when there is a member of another name. None is there twice: the parser has seen to that.
    fn of(
        mut inside: Inside<'d, 't>,
        names: &'static [&'static str],
    ) -> Result<Members<'d, 't>, Mismatch> {
        let mut places = [0; MAX_MEMBERS];
        let mut likely = names.iter().enumerate();
        let document = inside.document;
        while let Some(key) = inside.next().and_then(Value::text) {
            let is_called = |(_, name): &(usize, &&str)| key == ***name;
            // Where the text is our own, members come in the order of the names.
            let known = likely.find(is_called).or_else(|| {
                likely = names.iter().enumerate();
                likely.find(is_called)
            });
            let place = known.and_then(|(number, _)| places.get_mut(number));
            *place.ok_or_else(|| Mismatch::unknown_field(&key.to_cow(), names))? = inside.next;
            inside.next();
        }
        Ok(Members {
            document,
            names,
            places,
            asked: 0,
        })
    }

    /// The next one, if it is there.
    fn next(&mut self) -> Option<Value<'d, 't>> {
        let place = self.places.get(self.asked).filter(|place| **place != 0);
        self.asked += 1;
        self.document.value(*place?)
    }

    /// The name of the one asked for last, when it is not there. A struct that cannot be read after that cannot do without it.
    fn absent(&self) -> Option<&'static str> {
        let last = self.asked.checked_sub(1)?;
        let is_absent = self.places.get(last) == Some(&0);
        self.names.get(last).copied().filter(|_| is_absent)
    }
}

impl<'t> SeqAccess<'t> for &mut Members<'_, 't> {
    type Error = Mismatch;

    /// `None` for a member that is not there: the struct has something in its place, or cannot be read.
    fn next_element_seed<T: DeserializeSeed<'t>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Mismatch> {
        self.next().map(|value| seed.deserialize(value)).transpose()
    }
}

macro_rules! read_as {
    ($how:ident: $($method:ident)*) => {
        $(fn $method<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Mismatch> {
            self.$how(visitor)
        })*
    };
}

impl<'t> Deserializer<'t> for Value<'_, 't> {
    type Error = Mismatch;

    fn deserialize_any<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.kind() {
            Kind::Null => visitor.visit_unit(),
            Kind::Bool => self.deserialize_bool(visitor),
            Kind::Number => self.integer(visitor),
            Kind::String => self.word(visitor),
            Kind::Array => self.list(visitor),
            Kind::Object => self.map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.as_bool() {
            Some(value) => visitor.visit_bool(value),
            None => Err(expected(&visitor)),
        }
    }

    fn deserialize_option<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.is_null() {
            true => visitor.visit_none(),
            false => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'t>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'t>>(
        self,
        _: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        self.object(names, visitor)
    }

    fn deserialize_tuple<V: Visitor<'t>>(self, _: usize, visitor: V) -> Result<V::Value, Mismatch> {
        self.list(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'t>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        self.list(visitor)
    }

    fn deserialize_enum<V: Visitor<'t>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        let mut inside = self.inside();
        let variant = match self.kind() {
            Kind::String => Some((self, None)),
            Kind::Object => inside.next().map(|name| (name, inside.next())),
            Kind::Null | Kind::Bool | Kind::Number | Kind::Array => None,
        };
        match variant {
            Some((name, content)) if self.kind() == Kind::String || inside.next().is_none() => {
                visitor.visit_enum(Variant { name, content })
            }
            Some(_) | None => Err(expected(&visitor)),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'t>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        self.deserialize_any(visitor)
    }

    read_as!(integer: deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64);
    read_as!(integer: deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64);
    read_as!(word: deserialize_string);
    read_as!(name: deserialize_str deserialize_char deserialize_identifier);
    read_as!(list: deserialize_seq);
    read_as!(map: deserialize_map);
    read_as!(deserialize_any: deserialize_f32 deserialize_f64 deserialize_unit deserialize_bytes deserialize_byte_buf);
}

/// One of the forms that an enum has: its name, and what it comes with.
struct Variant<'d, 't> {
    name: Value<'d, 't>,
    content: Option<Value<'d, 't>>,
}

impl<'d, 't> EnumAccess<'t> for Variant<'d, 't> {
    type Error = Mismatch;
    type Variant = Variant<'d, 't>;

    fn variant_seed<V: DeserializeSeed<'t>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Variant<'d, 't>), Mismatch> {
        Ok((seed.deserialize(self.name)?, self))
    }
}

impl<'d, 't> Variant<'d, 't> {
    fn content(self) -> Result<Value<'d, 't>, Mismatch> {
        self.content
            .ok_or_else(|| Mismatch::custom("expected an object of one member"))
    }
}

impl<'t> VariantAccess<'t> for Variant<'_, 't> {
    type Error = Mismatch;

    fn unit_variant(self) -> Result<(), Mismatch> {
        match self.content {
            None => Ok(()),
            Some(_) => Err(Mismatch::custom("expected a word")),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'t>>(self, seed: T) -> Result<T::Value, Mismatch> {
        seed.deserialize(self.content()?)
    }

    fn tuple_variant<V: Visitor<'t>>(self, _: usize, visitor: V) -> Result<V::Value, Mismatch> {
        self.content()?.list(visitor)
    }

    fn struct_variant<V: Visitor<'t>>(
        self,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        self.content()?.object(names, visitor)
    }
}

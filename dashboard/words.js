// Validation errors of the server in the words of the form.

import { span } from './format.js'

// inWords returns what a validation error about a field means, or null if it has no words of
// its own. label names the field, name is that of the setting, and value what was entered.
export function inWords({ type, msg, ctx }, label, { name, value }) {
  const limit = ctx?.limit_value
  const isTime = name.endsWith('_seconds')
  const amount = isTime ? span(limit) : String(limit)
  switch (type) {
    case 'value_error.missing':
    case 'type_error.none.not_allowed':
      return `${label} is required.`
    case 'value_error.number.not_ge':
      return `${label} must be at least ${amount}.`
    case 'value_error.number.not_gt':
      return `${label} must be more than ${amount}.`
    case 'value_error.number.not_le':
      return `${label} must be at most ${amount}.`
    case 'value_error.number.not_lt':
      return `${label} must be less than ${amount}.`
    case 'type_error.integer':
      return isTime ? `${label} must be a time, such as 30s, 5 minutes or 4d.` : `${label} must be a whole number.`
    case 'value_error.str.regex':
      return value === '' ? `${label} is required.` : `${label} may have only letters from a to z, digits, -, . and _`
    case 'type_error.dict':
      return `${label} must be a JSON object, such as {"country": "fr"}.`
    case 'type_error.list':
      return `${label} must have lists, such as {"country": ["fr", "es"]}.`
    case 'type_error.str':
      return `${label} must have texts in quotation marks, such as {"country": "fr"}.`
    case 'value_error':
      return msg === 'message_max_deliveries is required for dead queue support' ? 'Enter after how many deliveries a message moves to the dead queue.' : null
    default:
      return null
  }
}
